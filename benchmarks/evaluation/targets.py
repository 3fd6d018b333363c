"""Which class a targeted attack seeks."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attacks.expectation import call
from attacks.randomness import OfCaller, derive, uniform

Target = Literal["least_likely", "random"] | int
"""The class of the smallest logit, any other class by chance, or one class."""

_NAMES = get_args(get_args(Target)[0])
_DRAWS = 8


@torch.no_grad()
def choose_targets(target: Target, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor) -> Tensor:
    """(n,) int64 classes other than the labels, by image a function of its key.

    Args:
        target: "least_likely": of the smallest mean logit over 8 draws of the attacked model on the clean image
            (Kurakin et al. 2017, arXiv 1611.01236); "random": uniform over the other classes; a class: for all images
            but those of that class, which get the next one.
        model: the attacked model; images in [0, 1] -> logits (n, classes).
        x: (n, c, h, w) clean images.
        y: (n,) int64 labels.
        keys: (n,) int64.

    Raises:
        ValueError: an unknown `target`, or a class that the model does not have.
    """
    if not is_target(target):
        raise ValueError(f"target must be {', '.join(_NAMES)} or a class from 0, got {target!r}")
    draws = _DRAWS if target == "least_likely" else 1  # else only the number of classes is asked
    logits = torch.stack([call(model, x, derive(keys, OfCaller.TARGET, draw)) for draw in range(draws)]).mean(0)
    classes = logits.shape[1]
    if target == "least_likely":
        return logits.nan_to_num(nan=torch.inf).scatter(1, y[:, None], torch.inf).argmin(1)
    if target == "random":
        steps = 1 + (uniform(derive(keys, OfCaller.TARGET), (1,), torch.float64)[:, 0] * (classes - 1)).long()
        return (y + steps) % classes
    if int(target) >= classes:
        raise ValueError(f"target={target}: the model has the classes 0 .. {classes - 1}")
    return torch.where(y == int(target), (y + 1) % classes, int(target))


def is_target(value: object) -> bool:
    """Whether `value` is a `Target`."""
    return value in _NAMES or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
