"""Whether an attack's settings suffice for it to begin, without a call of the model that it is meant for."""

from contextlib import suppress

import torch
from torch import Tensor, nn

from benchmarks.evaluation.evaluate import Attack


class _Begun(Exception):
    """An attack reported progress."""


class _Indifferent(nn.Module):
    """Takes keys, and answers all images alike."""

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        return x.flatten(1).sum(1, keepdim=True) * x.new_zeros(1, 10)


def check_begins(attack: Attack, random: bool, shape: tuple[int, ...] = (3, 8, 8)) -> None:
    """Runs the attack up to its first progress on one grey image and a model that costs nothing.

    Args:
        attack: any.
        random: whether the model is to take keys, as those do whose answers are draws.
        shape: of the image, (c, h, w).

    Raises:
        ValueError: what the attack raises of settings that are too small for it.
    """

    def stop(done: int, total: int) -> None:
        raise _Begun

    model = _Indifferent() if random else nn.Sequential(_Indifferent())  # whose forward takes none
    zero = torch.zeros(1, dtype=torch.int64)
    with suppress(_Begun):
        attack(model, torch.full((1, *shape), 0.5), zero, zero, stop)


def begins(attack: Attack, random: bool) -> bool:
    """Whether `check_begins` has nothing to say."""
    try:
        check_begins(attack, random)
    except ValueError:
        return False
    return True
