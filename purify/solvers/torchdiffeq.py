"""The probability-flow ODE through torchdiffeq (Chen et al. 2018, arXiv 1806.07366)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torchdiffeq
from torch import Tensor

from purify.score.model import ScoreModel
from purify.solvers.adaptive import Tolerance, breakdown, explained, one_at_a_time, tolerance_of
from purify.solvers.base import Solver
from purify.solvers.grids import Times
from purify.solvers.sde import SDE, ReverseSDE

FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
"""Methods of fixed steps -> network evaluations a step, which is also their order. torchdiffeq's "rk4" is the 3/8 rule.
"""

ENDS = ("heun2", "rk4")
"""Methods of fixed steps that evaluate both ends of a step."""


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: where and with which weights of the slopes so far the next slope is taken, and
    the weights of all slopes in the step.
    """

    stages: tuple[tuple[float, tuple[float, ...]], ...]
    step: tuple[float, ...]


ADAPTIVE = {
    "dopri5": Tableau(
        (
            (1 / 5, (1 / 5,)),
            (3 / 10, (3 / 40, 9 / 40)),
            (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
            (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
            (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
            (1.0, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    ),
    "bosh3": Tableau(
        ((1 / 2, (1 / 2,)), (3 / 4, (0.0, 3 / 4)), (1.0, (2 / 9, 1 / 3, 4 / 9))), (2 / 9, 1 / 3, 4 / 9, 0.0)
    ),
    "adaptive_heun": Tableau(((1.0, (1.0,)),), (0.5, 0.5)),
}
"""torchdiffeq's adaptive methods: Dormand & Prince 1980 (order 5), Bogacki & Shampine 1989 (3), Heun with Euler (2)."""


@dataclass(frozen=True)
class TorchDiffEq:
    """The probability-flow ODE (`purify.solvers.sde.ReverseSDE` with eta = 0) by torchdiffeq; there is no noise on the
    way back.

    With an adaptive method every image is integrated alone, so that results do not depend on the batch. `steps` of the
    purifier are then the pieces of the grid, each integrated with as many steps as the tolerances ask for: they bound
    the memory of exact gradients, and the network is evaluated more often, and once more in the backward pass. Step
    sizes count as constants in gradients: they differ from the gradient of the ODE's solution by an error of the order
    of the tolerance (finite differences see the step sizes change too, and differ more where the drift jumps, as
    DiscreteVP's does). gradient="adjoint" is one solve of the adjoint equation with fixed steps over the whole way, and
    one for each piece with adaptive ones.

    Args:
        method: with fixed steps "euler", "midpoint", "heun2", "heun3" or "rk4"; adaptive "dopri5", "bosh3" or
            "adaptive_heun".
        rtol: of adaptive methods, relative tolerance, > 0.
        atol: of adaptive methods, absolute tolerance, > 0.
        max_evaluations: of adaptive methods, of the network for one image and one piece (with the adjoint, there and
            back); beyond it a RuntimeError is raised.

    Raises:
        ValueError: settings out of range or unknown.
    """

    method: Literal["euler", "midpoint", "heun2", "heun3", "rk4", "dopri5", "bosh3", "adaptive_heun"] = "euler"
    rtol: float = 1e-4
    atol: float = 1e-4
    max_evaluations: int = 10_000

    has_adjoint: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.method in _REFUSED:
            raise ValueError(
                f"method={self.method!r} of torchdiffeq is not available: {_REFUSED[self.method]}; use one of"
                f" {', '.join([*FIXED, *ADAPTIVE])}"
            )
        if self.method not in FIXED and self.method not in ADAPTIVE:
            raise ValueError(f"method={self.method!r} is not one of {', '.join([*FIXED, *ADAPTIVE])}")
        tolerance_of(self, self.method in ADAPTIVE)

    @property
    def evaluates_end(self) -> bool:
        """See `SolverSettings.evaluates_end`."""
        return self.method in ADAPTIVE or self.method in ENDS

    def intervals(self, steps: int) -> int:
        """See `SolverSettings.intervals`."""
        if self.method in ADAPTIVE:
            return steps
        if steps % FIXED[self.method]:
            raise ValueError(
                f"steps counts network evaluations, {FIXED[self.method]} a step with method={self.method!r}: {steps} is"
                " not a multiple"
            )
        return steps // FIXED[self.method]

    def build(self, score: ScoreModel, times: Times) -> "ODESolver":
        """See `SolverSettings.build`."""
        return ODESolver(ReverseSDE(score, times, 0.0), self.method, tolerance_of(self, self.method in ADAPTIVE))


_MULTISTEP = "a multistep method, whose steps cannot be repeated one by one"
_REFUSED = {
    "explicit_adams": _MULTISTEP,
    "implicit_adams": _MULTISTEP,
    "fixed_adams": _MULTISTEP,
    "scipy_solver": "it has no gradient",
    "fehlberg2": "its error estimate is far too low on these equations, so that its results miss the tolerance",
    "dopri8": "its steps are not known here, to be repeated for gradients",
}


class ODESolver(Solver):
    """Integrates the drift of an unguided `SDE` over the step clock, real times inside the SDE.

    Args:
        ode: what to integrate; its diffusion is not looked at.
        method: see `TorchDiffEq`.
        tolerance: of adaptive methods.
    """

    def __init__(self, ode: SDE, method: str, tolerance: Tolerance | None = None):
        self.ode = ode
        self.method = method
        self.tolerance = tolerance
        self.steps = ode.steps

    def step(self, index: int, state: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """See `Solver.step`."""
        if self.tolerance is not None:
            return one_at_a_time(lambda ode, x, *_: self._piece(ode, x, index), self.ode, state, keys, None)
        view = _View(self.ode, index)
        end: Tensor = torchdiffeq.odeint(view, state, _clock(state, 1), method=self.method)[-1]
        view.expect(FIXED[self.method])
        return end

    def solve_adjoint(self, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """All steps; the gradient solves the adjoint equation backwards, with the same method and steps, the network
        counting as constant.

        With fixed steps the states on the way back are those of the same solve, from the last one; adaptive methods
        begin each piece at the state kept there, and choose their steps anew. The result approximates the gradient.
        """
        if self.tolerance is not None:
            for index in range(self.steps):
                x = one_at_a_time(lambda ode, y, *_, i=index: self._adjoint_piece(ode, y, i), self.ode, x, keys, None)
            return x
        view = _View(self.ode, 0)
        end: Tensor = torchdiffeq.odeint_adjoint(
            view, x, _clock(x, self.steps), method=self.method, options={"step_size": 1.0}, adjoint_params=()
        )[-1]
        view.expect(FIXED[self.method] * self.steps)
        return end

    def _piece(self, ode: SDE, x: Tensor, index: int) -> Tensor:
        """One image over one piece: torchdiffeq's value, with the derivative of the accepted steps."""
        recorded: tuple[Tensor, _Recorder] = _Recorded.apply(x.detach(), self, ode, index)
        end, view = recorded
        if not torch.is_grad_enabled():
            return end
        again = _runge_kutta(ode, index, x, view.accepted, ADAPTIVE[self.method])
        return end + (again - again.detach())

    def _adjoint_piece(self, ode: SDE, x: Tensor, index: int) -> Tensor:
        with explained():
            end: Tensor = torchdiffeq.odeint_adjoint(
                _View(ode, index, self.tolerance), x, _clock(x, 1), **self._control(x), adjoint_params=()
            )[-1]
        return end

    def _control(self, x: Tensor) -> dict[str, Any]:
        """What torchdiffeq is told about the steps; `step_t` makes the last one end with the piece, in both directions,
        not beyond it.
        """
        assert self.tolerance is not None
        return dict(
            method=self.method, rtol=self.tolerance.rtol, atol=self.tolerance.atol, options={"step_t": _clock(x, 1)}
        )


def _clock(x: Tensor, end: int) -> Tensor:
    return torch.tensor([0, end], dtype=torch.float64, device=x.device)


class _View:
    """The drift as torchdiffeq wants to see it, on a clock that is 0 where the piece `first` begins."""

    def __init__(self, ode: SDE, first: int, tolerance: Tolerance | None = None):
        self.ode = ode
        self.first = first
        self.tolerance = tolerance
        self.passed = 0  # pieces between `first` and the one that the current step lies in
        self.evaluations = 0

    def __call__(self, u: Tensor, x: Tensor) -> Tensor:
        self.evaluations += 1
        if self.tolerance is not None:
            self.tolerance.check(self.evaluations)
        along = u.detach().item() - self.passed
        if math.isnan(along):
            raise breakdown("the length of the first step is not a number")
        along = min(max(along, 0.0), 1.0)  # the search for a first adaptive step may look beyond the piece
        piece = self.first + self.passed
        return self.ode.drift(piece + along, x, piece=piece)

    def callback_step(self, u: Tensor, x: Tensor, du: Tensor) -> None:
        """torchdiffeq calls this before a step."""
        self.passed = math.floor(u)

    def callback_step_adjoint(self, u: Tensor, x: Tensor, du: Tensor) -> None:
        """torchdiffeq calls this before a step of the adjoint, which walks down."""
        self.passed = math.ceil(u) - 1

    def expect(self, evaluations: int) -> None:
        """Raises RuntimeError unless there were so many evaluations so far."""
        if self.evaluations != evaluations:
            raise RuntimeError(f"torchdiffeq evaluated the drift {self.evaluations} times, expected {evaluations}")


class _Recorder(_View):
    """Keeps the accepted steps: (where it begins on the clock, length) each."""

    def __init__(self, ode: SDE, first: int, tolerance: Tolerance):
        super().__init__(ode, first, tolerance)
        self.accepted: list[tuple[float, float]] = []

    def callback_accept_step(self, u: Tensor, x: Tensor, du: Tensor) -> None:
        """torchdiffeq calls this after an accepted step."""
        self.accepted.append((u.item(), du.item()))


class _Recorded(torch.autograd.Function):
    """One image over one piece as a constant: torchdiffeq's adaptive methods do not work on the tensors of
    `torch.func`, which arrive here unwrapped.
    """

    @staticmethod
    def forward(x: Tensor, solver: ODESolver, ode: SDE, index: int) -> tuple[Tensor, _Recorder]:
        assert solver.tolerance is not None
        view = _Recorder(ode, index, solver.tolerance)
        with torch.no_grad(), explained():
            return torchdiffeq.odeint(view, x, _clock(x, 1), **solver._control(x))[-1], view

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, _Recorder]) -> None:
        ctx.mark_non_differentiable(output[0])


def _runge_kutta(ode: SDE, index: int, x: Tensor, steps: list[tuple[float, float]], tableau: Tableau) -> Tensor:
    """The piece by given steps. As in torchdiffeq, the last slope of a step is the first one of the next, whether the
    method was made for that or not.
    """
    slope = ode.drift(float(index), x, piece=index)
    for begin, length in steps:
        slopes = [slope]
        for node, weights in tableau.stages:
            along = min(begin + node * length, 1.0)
            slopes.append(ode.drift(index + along, _advanced(x, length, weights, slopes), piece=index))
        x, slope = _advanced(x, length, tableau.step, slopes), slopes[-1]
    return x


def _advanced(x: Tensor, length: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return x + length * sum(weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight)
