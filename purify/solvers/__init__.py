"""Ways to integrate the reverse process, by name. A solver is what `Solver` says; gradient modes are the business of `purify.gradients`."""

from typing import Protocol

from torch import Tensor

from purify.solvers.torchsde import TorchSDE


class Solver(Protocol):
    """A fixed sequence of steps x_{i+1} = step(i, x_i), replayable from keys.

    `image` (b, c, h, w) is what guides a guided scheme, on the scale of the states, else None; every method is differentiable in it as in `x`.
    """

    steps: int
    guided: bool
    """Whether the steps look at `image`."""

    def step(self, index: int, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """One step from the state `x` (b, c, h, w)."""

    def solve(self, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """All steps: the same values as `step` after `step`, keeping every graph."""

    def solve_adjoint(self, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """The same values with a continuous adjoint as the gradient. Raises ValueError where there is none."""


SOLVERS = {"torchsde": TorchSDE}

__all__ = ["SOLVERS", "Solver", "TorchSDE"]
