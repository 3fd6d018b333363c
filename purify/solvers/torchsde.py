"""SDEs through torchsde (Li et al. 2020, arXiv 2001.01328)."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torchsde
from torch import Tensor

from purify.checks import check_not_negative
from purify.noise import KeyedBrownian
from purify.score.model import ScoreModel
from purify.solvers.adaptive import Tolerance, explained, one_at_a_time, tolerance_of
from purify.solvers.base import Solver
from purify.solvers.grids import Times, per_image
from purify.solvers.sde import SDE, ReverseSDE

METHODS = {"euler": 1, "milstein": 1, "srk": 3}
"""torchsde's Ito methods for additive noise -> drift evaluations a step. Strong orders here: 1, 1, 1.5."""


@dataclass(frozen=True)
class TorchSDE:
    """The reverse SDE (`purify.solvers.sde.ReverseSDE`) by torchsde.

    With adaptive steps, torchsde compares one step with two halves of it on the same Brownian path, for one image at a
    time, so that results do not depend on the batch. `steps` of the purifier are then the pieces of the grid, each
    integrated with as many steps as the tolerances ask for: they bound the memory of exact gradients, and the network
    is evaluated more often. Step sizes count as constants in gradients, so they are not what finite differences give:
    other step sizes see other points of a rough path. Below 2^-16 of a piece the path is linear.

    Args:
        method: "euler", "milstein" (equal to it: the noise is additive), or "srk" (three evaluations a step).
        eta: share of the noise on the way back, >= 0: 1 the reverse SDE, 0 the probability-flow ODE.
        adaptive: whether the steps adapt to `rtol` and `atol`.
        rtol: of adaptive steps, relative tolerance, > 0.
        atol: of adaptive steps, absolute tolerance, > 0.
        max_evaluations: of adaptive steps, of the network for one image and one piece; beyond it a RuntimeError is
            raised.

    Raises:
        ValueError: settings out of range or unknown.
    """

    method: Literal["euler", "milstein", "srk"] = "euler"
    eta: float = 1.0
    adaptive: bool = False
    rtol: float = 1e-2
    atol: float = 1e-2
    max_evaluations: int = 10_000

    evaluates_end: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is not one of torchsde's Ito methods {', '.join(METHODS)}")
        check_not_negative(eta=self.eta)
        tolerance_of(self, self.adaptive)

    @property
    def has_adjoint(self) -> bool:
        """See `SolverSettings.has_adjoint`: torchsde has no adjoint of srk, and that of adaptive steps would choose
        other steps on the way back.
        """
        return self.method != "srk" and not self.adaptive

    def intervals(self, steps: int) -> int:
        """See `SolverSettings.intervals`."""
        if self.adaptive:
            return steps
        if steps % METHODS[self.method]:
            raise ValueError(
                f"steps counts network evaluations, {METHODS[self.method]} a step with method={self.method!r}: {steps}"
                " is not a multiple"
            )
        return steps // METHODS[self.method]

    def build(self, score: ScoreModel, times: Times) -> "SDESolver":
        """See `SolverSettings.build`."""
        return SDESolver(ReverseSDE(score, times, self.eta), self.method, tolerance_of(self, self.adaptive))


class SDESolver(Solver):
    """Integrates any `SDE` over the step clock, real times inside the SDE: piece by piece, ts = [i, i + 1], or with the
    adjoint all at once.

    Args:
        sde: what to integrate.
        method: see `TorchSDE`.
        tolerance: for adaptive steps inside the pieces; None makes each piece one step.
    """

    def __init__(self, sde: SDE, method: str = "euler", tolerance: Tolerance | None = None):
        self.sde = sde
        self.method = method
        self.tolerance = tolerance
        self.steps = sde.steps
        self.guided = sde.guided

    def step(self, index: int, state: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """See `Solver.step`."""
        # dt_min=0: instead of accepting steps that miss the tolerance, run into the limit of the evaluations.
        control = (
            {}
            if self.tolerance is None
            else dict(adaptive=True, rtol=self.tolerance.rtol, atol=self.tolerance.atol, dt_min=0.0)
        )

        def piece(sde: SDE, x: Tensor, keys: Tensor, image: Tensor | None) -> Tensor:
            view = _TorchsdeView(sde, x, keys, image, index, self.tolerance)
            return self._integrate(torchsde.sdeint, view, x, index, index + 1, **control)

        if self.tolerance is None:
            return piece(self.sde, state, keys, image)
        with explained():
            return one_at_a_time(piece, self.sde, state, keys, image)

    def solve_adjoint(self, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """All steps; the gradient solves torchsde's stochastic adjoint equation backwards, by Euler on the same grid
        and noise.

        The network counts as constant (`adjoint_params` holds the guiding image or nothing). The result approximates
        the gradient; how well depends on the step size.
        """
        view = _TorchsdeView(self.sde, x, keys, image)
        y = self._integrate(
            torchsde.sdeint_adjoint,
            view,
            x,
            0,
            self.steps,
            adjoint_method="euler",
            adjoint_params=() if image is None else (image,),
        )
        view.walks_up = False
        return y

    def _integrate(
        self, integrate: Callable[..., Tensor], view: "_TorchsdeView", x: Tensor, start: int, end: int, **options: Any
    ) -> Tensor:
        # Times on the CPU: torchsde compares them at every step, which would wait for a GPU.
        ts = torch.tensor([start, end], dtype=torch.float64)
        with _untouched_generators(x.device):
            states = integrate(
                sde=view, y0=x.flatten(1), ts=ts, dt=1.0, bm=view.brownian, method=self.method, **options
            )
        expected = (end - start) * METHODS[self.method]
        if self.tolerance is None and view.evaluations != expected:
            raise RuntimeError(
                f"torchsde evaluated the drift {view.evaluations} times over {end - start} steps, expected {expected}"
            )
        return states[-1].reshape(x.shape)


class _TorchsdeView:
    """An SDE as torchsde wants to see it: flat states, additive noise.

    torchsde's contract check calls the drift once for its shape, before any solver asks for a Brownian increment; that
    call is answered without the network. The caller compares `evaluations` with the number it expects, so no other call
    can go unnoticed.

    Args:
        sde: the equation.
        x: images that show the shape, dtype and device of the states.
        keys: (b,) int64.
        image: the guide, or None.
        piece: of the clock, where only one is integrated.
        tolerance: what limits the evaluations, if anything.
    """

    noise_type = "additive"
    sde_type = "ito"

    def __init__(
        self,
        sde: SDE,
        x: Tensor,
        keys: Tensor,
        image: Tensor | None,
        piece: int | None = None,
        tolerance: Tolerance | None = None,
    ):
        self.sde = sde
        self.shape = x.shape
        self.brownian = KeyedBrownian(keys, x[0].numel(), x.dtype)
        self.image = image
        self.piece = piece
        self.tolerance = tolerance
        self.evaluations = 0
        self.walks_up = True  # False once the forward solve is over: the adjoint walks the clock down

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        if self.brownian.queries == 0:
            return torch.zeros_like(y)
        self.evaluations += 1
        if self.tolerance is not None:
            self.tolerance.check(self.evaluations)
        return self.sde.drift(float(u), y.reshape(self.shape), self.image, self._piece(float(u))).flatten(1)

    def g_prod(self, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        del y
        return per_image(self.sde.diffusion(float(u), self._piece(float(u))), v) * v

    def _piece(self, u: float) -> int:
        """Over the whole clock, Euler's steps use nothing but the point that they leave."""
        if self.piece is not None:
            return self.piece
        return math.floor(u) if self.walks_up else math.ceil(u) - 1


@contextlib.contextmanager
def _untouched_generators(device: torch.device) -> Iterator[None]:
    """torchsde's contract check draws from torch's global generators; this puts them back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
