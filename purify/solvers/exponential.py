"""Single-step exponential integrators of second order in the denoised image."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

from torch import Tensor

from purify.noise import Stage
from purify.schedules.elementwise import log
from purify.solvers.base import Levels, StepRule, normals, scaled

Weights = Literal["dpm++", "res"]


class Level(NamedTuple):
    """A point of the process by its marginal."""

    alpha: float | Tensor
    ratio: float | Tensor
    """sigma / alpha."""


def advance(x: Tensor, denoised: Tensor, start: Level, end: Level, eta: float, keys: Tensor, index: int) -> Tensor:
    """The reverse process with a constant denoised image, solved exactly (Lu et al. 2022, arXiv 2211.01095:
    DPM-Solver++1, and SDE-DPM-Solver++1 for eta = 1).

    With q = r_end / r_start of y = x / alpha: y_end = q^(1 + eta^2) y + (1 - q^(1 + eta^2)) denoised + r_end sqrt(1 -
    q^(2 eta^2)) z.

    Args:
        x: (b, c, h, w), at the level `start`.
        denoised: (b, c, h, w).
        start: where `x` is.
        end: where to go, with less noise or none.
        eta: as in `purify.solvers.sde.ReverseSDE`: 0 the flow, without z, and 1 the reverse SDE.
        keys: (b,) int64.
        index: of the normals z.

    Returns:
        (b, c, h, w), at the level `end`.
    """
    kept = end.ratio / start.ratio
    decay = kept ** (1 + eta**2)
    x = scaled(end.alpha / start.alpha * decay, x) + scaled(end.alpha * (1 - decay), denoised)
    if eta == 0:
        return x
    return x + scaled(
        end.alpha * end.ratio * (1 - kept ** (2 * eta**2)) ** 0.5, normals(keys, Stage.INCREMENT, index, x)
    )


@dataclass(frozen=True)
class Exponential(StepRule):
    """Two evaluations a step, at its beginning and at the middle in log r with r = sigma / alpha; n steps cost 2 n - 1,
    as the last one takes one.

    Order 2 for eta = 0 (deterministic), weak order 2 for eta > 0, where the two halves of a step have independent
    normals and the middle lies on the stochastic path; in the step of log r, so on grids such as "log_snr" and
    "karras". The last step is `advance` alone, which is stable down to no noise.

    Args:
        weights: of the two denoised images: "dpm++", all on the middle one, DPM-Solver++(2S) (Lu et al. 2022, arXiv
            2211.01095, algorithm 1 with r_1 = 1/2), or "res", which satisfy the order conditions of exponential
            Runge-Kutta methods (Zhang et al. 2023, arXiv 2308.02157, RES with c_2 = 1/2).
        eta: share of the noise on the way back, >= 0: 0 (published default) the probability-flow ODE, 1 the reverse
            SDE.

    Raises:
        ValueError: settings out of range or unknown.
    """

    weights: Weights = "dpm++"
    eta: float = 0.0

    evaluations: ClassVar[int] = 2
    spared: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.weights not in get_args(Weights):
            raise ValueError(f"weights={self.weights!r} is not one of {', '.join(get_args(Weights))}")
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be a number of at least 0, got {self.eta}")

    def step(self, levels: Levels, index: int, state: Tensor, keys: Tensor) -> Tensor:
        """See `StepRule.step`."""
        start, end = (
            Level(levels.alpha(index), levels.ratio(index)),
            Level(levels.alpha(index + 1), levels.ratio(index + 1)),
        )
        first = levels.denoised(index, state)
        if levels.is_last(index):
            return advance(state, first, start, end, self.eta, keys, 2 * index)
        ratio = (start.ratio * end.ratio) ** 0.5
        t = levels.score.schedule.time_of(ratio)
        middle = Level(levels.score.schedule.alpha(t), ratio)
        state = advance(state, first, start, middle, self.eta, keys, 2 * index)
        # The first half went all by `first`; the second makes up for it, so that the whole step has the published
        # weights.
        second = first + scaled(self._share(end.ratio / start.ratio), levels.score.denoised(state, t) - first)
        return advance(state, second, middle, end, self.eta, keys, 2 * index + 1)

    def _share(self, kept: float | Tensor) -> float | Tensor:
        """Weight of the middle's denoised image over the whole step, for that of a half: `kept` is the ratio of the
        levels.
        """
        decay = kept ** (1 + self.eta**2)
        half = decay**0.5
        if self.weights == "dpm++":
            return 1 + half
        width = -log(decay)
        return 2 * (decay - 1 + width) / (width * (1 - half))
