"""What solvers with adaptive steps share: tolerances, a limit to the work, and one image at a time."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from purify.checks import check_count, check_positive
from purify.solvers.sde import SDE


@dataclass(frozen=True)
class Tolerance:
    """When an adaptive step is accepted: root mean square over the pixels of error / (atol + rtol |x|) <= 1, for one
    image.

    Args:
        rtol: relative tolerance, > 0.
        atol: absolute tolerance, > 0, on the scale of the states.
        max_evaluations: of the network, for one image and one piece of the grid, >= 1.

    Raises:
        ValueError: a value out of range.
    """

    rtol: float
    atol: float
    max_evaluations: int

    def __post_init__(self) -> None:
        check_positive(rtol=self.rtol, atol=self.atol)
        check_count(max_evaluations=self.max_evaluations)

    def check(self, evaluations: int) -> None:
        """Raises RuntimeError where the work has become too much."""
        if evaluations > self.max_evaluations:
            raise RuntimeError(
                f"adaptive steps need more than max_evaluations={self.max_evaluations} network evaluations for one"
                f" image and one piece of the grid: loosen rtol={self.rtol} and atol={self.atol}, raise"
                " max_evaluations, or use more steps, which are the pieces"
            )


class AdaptiveSettings(Protocol):
    """Settings of a solver whose steps can be adaptive, see `Tolerance`."""

    @property
    def rtol(self) -> float: ...

    @property
    def atol(self) -> float: ...

    @property
    def max_evaluations(self) -> int: ...


def tolerance_of(settings: AdaptiveSettings, adaptive: bool) -> Tolerance | None:
    """The settings' `rtol`, `atol` and `max_evaluations`, None for fixed steps. Raises ValueError where one is out of
    range, or given with fixed steps.
    """
    if adaptive:
        return Tolerance(settings.rtol, settings.atol, settings.max_evaluations)
    for name in ("rtol", "atol", "max_evaluations"):
        if getattr(settings, name) != getattr(type(settings), name):
            raise ValueError(
                f"{name}={getattr(settings, name)} is a setting of adaptive steps, got {settings} with fixed ones"
            )
    return None


def one_at_a_time(
    step: Callable[[SDE, Tensor, Tensor, Tensor | None], Tensor],
    sde: SDE,
    x: Tensor,
    keys: Tensor,
    image: Tensor | None,
) -> Tensor:
    """`step(sde, x, keys, image)` for every image alone: step sizes chosen for a batch would make an image's result
    depend on the others.
    """
    alone = [slice(i, i + 1) for i in range(len(x))]
    return torch.cat(
        [step(sde.of_images(each), x[each], keys[each], None if image is None else image[each]) for each in alone]
    )


def breakdown(reason: object) -> RuntimeError:
    """The error of steps that cannot go on."""
    return RuntimeError(
        f"adaptive steps broke down, the state is not finite or the tolerance too tight for its precision: {reason}"
    )


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """The libraries' assertions about numbers that are not finite, or steps that vanish, as `breakdown`."""
    try:
        yield
    except AssertionError as error:
        raise breakdown(error) from error
