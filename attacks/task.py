"""One call of an attack: what it was given, and what is noted while it runs."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.cost import Cost
from attacks.expectation import Expectation

Progress = Callable[[int, int], None]
"""progress(done, total), called after every gradient."""


@dataclass(frozen=True)
class Task:
    """What an attack is to do: checked, detached, and on one device.

    Attributes:
        model: images in [0, 1] -> logits.
        x: (b, c, h, w), in [0, 1].
        y: (b,) int64 labels.
        keys: (b,) int64: the attack's randomness for each image.
        targets: (b,) int64, classes to reach; None: any wrong one.
        start: (b, c, h, w), where to begin; None: wherever the attack begins.
        progress: to be called after every gradient, or what the attack counts.
        gradients: to be shown every gradient.
        cost: what the call has cost so far.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    keys: Tensor
    targets: Tensor | None
    start: Tensor | None
    progress: Progress
    gradients: "BadGradients"
    cost: Cost

    @property
    def everything(self) -> Tensor:
        """(b,) int64: the positions of all images."""
        return torch.arange(len(self.x), device=self.x.device)

    def expectation(self, draws: int, batch_size: int) -> Expectation:
        """The model and the goal, seen through so many draws."""
        return Expectation(self.model, self.y, draws, batch_size, self.targets)

    def counted(self, run: int, runs: int, length: int) -> Callable[[int], None]:
        """The progress of one of several runs of equal length: to be called with what of the run is done."""
        return lambda done: self.progress(run * length + done, runs * length)


class BadGradients:
    """Counts gradients that vanish or break: either makes any defence look robust, so it must not pass in silence."""

    def __init__(self, images: int, device: torch.device):
        self.seen, self.vanished, self.broken = (
            torch.zeros(images, dtype=torch.int64, device=device) for _ in range(3)
        )

    def see(self, gradient: Tensor, rows: Tensor, success: Tensor) -> None:
        """Counts the gradients (n, c, h, w) of the images at positions `rows`, vanished ones where not all draws reach
        the goal: `success` (n,) is their share.

        Where all do, "dlr" is constant at its maximum.
        """
        self.seen[rows] += 1
        self.vanished[rows] += (gradient == 0).flatten(1).all(1) & (success < 1)
        self.broken[rows] += (~gradient.isfinite()).flatten(1).any(1)

    def add(self, part: "BadGradients", rows: Tensor) -> None:
        """Counts what was counted of some images in an attack that is a part of this one."""
        for name in ("seen", "vanished", "broken"):
            getattr(self, name)[rows] += getattr(part, name)

    def warn(self, stacklevel: int) -> None:
        """Warns (UserWarning) of what was counted."""
        for what, counts in (("exactly zero", self.vanished), ("NaN or infinite", self.broken)):
            images = int((counts > 0).sum())
            if images:
                message = (
                    f"the attack's gradient was {what} for {images} of {len(counts)} images, in up to"
                    f" {int(counts.max())} of {int(self.seen.max())} steps"
                )
                warnings.warn(f"{message}: it cannot be trusted there", stacklevel=stacklevel + 1)


Whole = tuple[BadGradients, Tensor] | None
"""The counts of the attack that another one is a part of, and at which of its images the part works."""

_whole: ContextVar[Whole] = ContextVar("whole", default=None)


def whole() -> Whole:
    """What the attack that is called here is a part of."""
    return _whole.get()


@contextmanager
def part_of(whole: Whole) -> Iterator[None]:
    """An attack that is called inside leaves it to `whole` to warn of its gradients; None: it warns itself."""
    token = _whole.set(whole)
    try:
        yield
    finally:
        _whole.reset(token)
