"""Purifiers one after another: repeated and mixed purification."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from purify.noise import Purpose, check_keys, derive_keys
from purify.purifiers.base import Trajectory, trajectory_of
from purify.score.model import ScoreModel


class Sequential(nn.Module):
    """Every stage purifies what the one before returns, with randomness of its own: `Sequential([p] * 3)` purifies
    three times.

    Takes a purifier's place in a `DefendedClassifier`. Each stage is differentiated in its own gradient mode; the
    memory of "exact" is one state for each step of all stages.

    Args:
        purifiers: the stages, called as `purifier(x, keys)`, images in [0, 1] -> images in about [0, 1]: a `Purifier`,
            one `Resized`, or another `Sequential`. The same one may stand several times.
        seed: of the counter that makes fresh keys for calls without keys.

    Raises:
        ValueError: no stages.
    """

    def __init__(self, purifiers: Sequence[nn.Module], seed: int = 0):
        super().__init__()
        if (
            not isinstance(purifiers, Sequence)
            or not purifiers
            or not all(isinstance(purifier, nn.Module) for purifier in purifiers)
        ):
            raise ValueError(f"purifiers must be a list of at least one purifier, got {purifiers!r}")
        self.purifiers = nn.ModuleList(purifiers)
        self.seed = seed
        self._calls = 0

    @property
    def score(self) -> ScoreModel:
        """The first stage's score model: what images must look like."""
        return cast(ScoreModel, self.purifiers[0].score)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """See `Purifier.forward`. Stage k is handed keys that are a function of the image's key and k alone."""
        keys = self._keys(x, keys)
        for index, purifier in enumerate(self.purifiers):
            x = purifier(x, stage_keys(keys, index))
        return x

    def trajectory(self, x: Tensor, keys: Tensor | None = None, points: int = 4, estimates: bool = False) -> Trajectory:
        """The stages' trajectories one after another, see `Purifier.trajectory`.

        Args:
            x: as for `forward`.
            keys: as for `forward`.
            points: how many states of each stage, from 2.
            estimates: whether to compute the clean images that the states stand for, in the stage that they are in.

        Returns:
            `Trajectory` with the states of all stages. `noised` is the forward process from what a stage starts with;
            there are as many estimates as states, less one for each stage.

        Raises:
            ValueError: a stage without a trajectory, or one that cannot differentiate it.
        """
        keys = self._keys(x, keys)
        inside = []
        for index, purifier in enumerate(self.purifiers):
            trajectory = trajectory_of(purifier, f"stage {index}, {type(purifier).__name__},")
            inside.append(trajectory(x, stage_keys(keys, index), points, estimates))
            x = inside[-1].result
        noised, states = (
            torch.cat(parts) for parts in zip(*[(part.noised, part.states) for part in inside], strict=True)
        )
        clean = [part.estimates for part in inside if part.estimates is not None]
        return Trajectory(x, noised, states, torch.cat(clean) if clean else None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr() or ', '.join(map(repr, self.purifiers))})"

    def _keys(self, x: Tensor, keys: Tensor | None) -> Tensor:
        if keys is not None:
            check_keys(keys, len(x))
            return keys.to(x.device)
        self._calls += 1
        return derive_keys(torch.arange(len(x), device=x.device), self._calls, self.seed, Purpose.FRESH)


def stage_keys(keys: Tensor, index: int) -> Tensor:
    """(b,) int64: the keys of stage `index`."""
    return derive_keys(keys, index, 0, Purpose.ROUND)
