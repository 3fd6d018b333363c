"""Single-step exponential integrators of second order in the denoised image."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from purify.checks import check_choice, check_not_negative
from purify.noise import Stage
from purify.schedules.elementwise import log
from purify.solvers.base import Levels, StepRule, normals, scaled

Weights = Literal["dpm++", "res"]


class Level(NamedTuple):
    """A point of the process by its marginal."""

    alpha: float | Tensor
    r: float | Tensor
    """sigma / alpha."""


def level(levels: Levels, index: int) -> Level:
    """The grid's time `index` as a point."""
    return Level(levels.alpha(index), levels.ratio(index))


def advance(x_t: Tensor, x0: Tensor, t: Level, s: Level, eta: float, keys: Tensor, index: int) -> Tensor:
    """The reverse process with a constant denoised image, solved exactly (Lu et al. 2022, arXiv 2211.01095:
    DPM-Solver++1, and SDE-DPM-Solver++1 for eta = 1).

    With y = x / alpha and q = r_s / r_t: y_s = q^(1 + eta^2) y_t + (1 - q^(1 + eta^2)) x0 + r_s sqrt(1 - q^(2 eta^2))
    z.

    Args:
        x_t: (b, c, h, w), at the level t.
        x0: (b, c, h, w), the denoised image.
        t: where `x_t` is.
        s: where to go, with less noise or none.
        eta: as in `purify.solvers.sde.ReverseSDE`: 0 the flow, without z, and 1 the reverse SDE.
        keys: (b,) int64.
        index: of the normals z.

    Returns:
        (b, c, h, w), at the level s.
    """
    q = s.r / t.r
    decay = q ** (1 + eta**2)
    x_s = scaled(s.alpha / t.alpha * decay, x_t) + scaled(s.alpha * (1 - decay), x0)
    if eta == 0:
        return x_s
    z = normals(keys, Stage.INCREMENT, index, x_t)
    return x_s + scaled(s.alpha * s.r * (1 - q ** (2 * eta**2)) ** 0.5, z)


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

    evaluations = 2
    spared = 1

    def __post_init__(self) -> None:
        check_choice(get_args(Weights), weights=self.weights)
        check_not_negative(eta=self.eta)

    def step(self, levels: Levels, index: int, state: Tensor, keys: Tensor) -> Tensor:
        """See `StepRule.step`."""
        x_t, t, s = state, level(levels, index), level(levels, index + 1)
        x0_t = levels.denoised(index, x_t)
        if levels.is_last(index):
            return advance(x_t, x0_t, t, s, self.eta, keys, 2 * index)
        r_m = (t.r * s.r) ** 0.5
        middle = levels.score.schedule.time_of(r_m)
        m = Level(levels.score.schedule.alpha(middle), r_m)
        x_m = advance(x_t, x0_t, t, m, self.eta, keys, 2 * index)
        x0_m = levels.score.denoised(x_m, middle)
        # The first half went all by x0_t; the second makes up for it, so that the whole step has the published weights.
        x0 = x0_t + scaled(self._share(s.r / t.r), x0_m - x0_t)
        return advance(x_m, x0, m, s, self.eta, keys, 2 * index + 1)

    def _share(self, q: float | Tensor) -> float | Tensor:
        """Weight of the middle's denoised image over the whole step, for that of a half."""
        decay = q ** (1 + self.eta**2)
        half = decay**0.5
        if self.weights == "dpm++":
            return 1 + half
        width = -log(decay)
        return 2 * (decay - 1 + width) / (width * (1 - half))
