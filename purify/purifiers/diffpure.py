"""DiffPure (Nie et al., ICML 2022, arXiv 2205.07460)."""

from typing import Literal, get_args

from torch import Tensor

from purify import gradients
from purify.gradients import GradientMode
from purify.noise import Stage, standard_normal
from purify.purifiers.base import Path, Purifier, choose
from purify.schedules import LinearVP
from purify.score import ScoreModel
from purify.sde import Grid, ReverseSDE, time_grid
from purify.solvers import SOLVERS
from purify.solvers.torchsde import METHODS


class DiffPure(Purifier):
    """Diffuses the image to t_star in closed form, then integrates the reverse SDE back to t_end (algorithm of section 3.1).

    Args:
        score: the score model.
        t_star: time to diffuse to, in (0, score.t_max].
        steps: network evaluations on the way back.
        gradient: "exact", "backprop", "adjoint" or "bpda"; see `purify.gradients`.
        solver: "torchsde".
        method: the solver's method: "euler", "milstein", or "srk" (three evaluations a step).
        eta: share of the noise on the way back: 1 the reverse SDE, 0 the probability-flow ODE.
        t_end: where to stop, in (0, t_star); the score is singular at 0.
        grid: "uniform" steps, "quadratic", better for few steps, or "diffpure", see `purify.sde.time_grid`.
        time: whose times t_star and t_end are: "own", those of the score model's schedule (for EDM's that is the noise level), or "vp", those of DiffPure's VP
            process at the same ratio of noise to signal, which mean the same for every network.
        noising: "continuous", the marginal of the process that is then reversed, or "discrete", that of DDPM's chain of 1,000 steps, as DiffPure's code
            has it: a small mismatch at t_star.
        seed: of the fresh randomness of calls without keys.

    Raises:
        ValueError: an argument out of range or unknown, at construction.
    """

    def __init__(
        self,
        score: ScoreModel,
        t_star: float = 0.1,
        steps: int = 100,
        gradient: GradientMode = "exact",
        solver: str = "torchsde",
        *,
        method: str = "euler",
        eta: float = 1.0,
        t_end: float = 1e-5,
        grid: Grid = "uniform",
        time: Literal["own", "vp"] = "own",
        noising: Literal["continuous", "discrete"] = "continuous",
        seed: int = 0,
    ):
        super().__init__(score, seed)
        choose("time", time, ("own", "vp"))
        t_largest = score.schedule.t_max if time == "own" else 1.0
        if not 0 < t_star <= t_largest:
            raise ValueError(f"t_star must lie in (0, {t_largest:g}], got {t_star}")
        if not 0 < t_end < t_star:
            raise ValueError(f"t_end must lie in (0, t_star={t_star}), got {t_end}")
        start, end = (t_star, t_end) if time == "own" else (score.time_of_vp(t_star), score.time_of_vp(t_end))
        if start > score.t_max:
            own = "" if time == "own" else f", {start:g} in the score model's own time,"
            raise ValueError(f"t_star={t_star}{own} is beyond t_max={score.t_max}, the largest time that the score network was trained on")
        if not end < start:
            raise ValueError(f"t_star={t_star} has no more noise than this score model's process begins with")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be a positive integer, got {steps!r}")
        if not eta >= 0:
            raise ValueError(f"eta must be at least 0, got {eta}")
        choose("gradient", gradient, gradients.MODES)
        choose("solver", solver, SOLVERS)
        choose("method", method, METHODS)
        choose("grid", grid, get_args(Grid))
        choose("noising", noising, ("continuous", "discrete"))
        if steps % METHODS[method]:
            raise ValueError(f"steps counts network evaluations, {METHODS[method]} a step with method={method!r}: {steps} is not a multiple")
        if method == "srk" and (grid != "uniform" or gradient == "adjoint"):
            raise ValueError('method="srk" needs grid="uniform" (it evaluates both ends of a step) and has no adjoint in torchsde')
        self.t_star = t_star
        self.steps = steps
        self.gradient = gradient
        self.solver_name = solver
        self.method = method
        self.eta = eta
        self.t_end = t_end
        self.grid = grid
        self.time = time
        self.noising = noising
        self._start, self._end = start, end
        self.marginal(), self._times()  # raise where `noising` or `grid` does not fit

    def path(self, x: Tensor, keys: Tensor) -> Path:
        """See `Purifier.path`."""
        noise = standard_normal(keys, Stage.FORWARD, 0, tuple(x.shape[1:]), x.dtype)
        times, schedule = self._times(), self.score.schedule

        def noised(image: Tensor, step: int) -> Tensor:
            alpha, sigma = (schedule.alpha(times[step]), schedule.sigma(times[step])) if step else self.marginal()
            return alpha * image + sigma * noise

        return Path(SOLVERS[self.solver_name](ReverseSDE(self.score, times, self.eta), self.method), noised, times)

    def _times(self) -> tuple[float, ...]:
        return time_grid(self._start, self._end, self.steps // METHODS[self.method], self.grid)

    def marginal(self) -> tuple[float, float]:
        """Factors of the image and of the noise at t_star."""
        schedule = self.score.schedule
        if self.noising == "continuous":
            return schedule.alpha(self._start), schedule.sigma(self._start)
        if not isinstance(schedule, LinearVP):
            raise ValueError(f'noising="discrete" is DDPM\'s chain, for a LinearVP schedule; this score model has {schedule}')
        return schedule.chain_marginal(self._start)

    def extra_repr(self) -> str:
        return (
            f"t_star={self.t_star}, steps={self.steps}, gradient={self.gradient!r}, solver={self.solver_name!r}, "
            f"method={self.method!r}, eta={self.eta}, t_end={self.t_end}, grid={self.grid!r}, time={self.time!r}, noising={self.noising!r}"
        )
