"""DiffPure (Nie et al., ICML 2022, arXiv 2205.07460)."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from purify import solvers
from purify.checks import check_choice, check_count
from purify.gradients import GradientMode
from purify.noise import Purpose, Stage, standard_normal, uniform
from purify.purifiers.base import Path, Purifier, check_gradient
from purify.schedules import LinearVP
from purify.schedules.base import Time
from purify.score.model import ScoreModel
from purify.solvers import SolverSettings
from purify.solvers.grids import Grid, Times, per_image, time_grid


class DiffPure(Purifier):
    """Diffuses the image to t_star in closed form, then goes back to t_end (algorithm of section 3.1).

    Args:
        score: the score model.
        t_star: time to diffuse to, in (0, score.t_max]; or (b,) times, one for each image of every batch that is
            purified.
        steps: network evaluations on the way back (pieces of the path where a solver's own steps are adaptive).
        gradient: "exact", "backprop", "adjoint" or "bpda"; see `purify.gradients`.
        solver: a name in `purify.solvers.SOLVERS`, a mapping of `name` and options, or settings such as
            `purify.solvers.TorchSDE(eta=0.5)`.
        method: an option of a named solver, for short: of torchsde "euler" (default), "milstein" or "srk"; of
            torchdiffeq "euler", "heun2", "dopri5", ...
        eta: an option of a named solver, for short: share of the noise on the way back; for torchsde 1 (default) the
            reverse SDE, 0 the probability-flow ODE.
        t_end: where to stop, in [0, t_star); 0 is the beginning of the process. Default 1e-5, and 0 on the grid "chain"
            or where the process begins later.
        grid: "uniform" steps, "quadratic", better for few steps, or another one, see `purify.solvers.grids.time_grid`.
        time: whose times t_star and t_end are: "own", those of the score model's schedule (for EDM's that is the noise
            level), or "vp", those of DiffPure's VP process at the same ratio of noise to signal, which mean the same
            for every network.
        noising: "continuous", the marginal of the process that is then reversed, or "discrete", that of DDPM's chain of
            1,000 steps, as DiffPure's code has it: a small mismatch at t_star.
        t_delta: every draw of every image starts at its own time, uniform in t_star +- t_delta: DiffPure's random t*
            (its code draws one for a batch).
        seed: of the fresh randomness of calls without keys.

    Raises:
        ValueError: an argument out of range or unknown, or a combination that does not make sense, at construction.
    """

    def __init__(
        self,
        score: ScoreModel,
        t_star: float | Tensor = 0.1,
        steps: int = 100,
        gradient: GradientMode = "exact",
        solver: str | Mapping[str, Any] | SolverSettings = "torchsde",
        *,
        method: str | None = None,
        eta: float | None = None,
        t_end: float | None = None,
        grid: Grid = "uniform",
        time: Literal["own", "vp"] = "own",
        noising: Literal["continuous", "discrete"] = "continuous",
        t_delta: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(score, seed)
        check_choice(("own", "vp"), time=time)
        check_choice(get_args(Grid), grid=grid)
        check_choice(("continuous", "discrete"), noising=noising)
        check_count(steps=steps)
        options = {"method": method, "eta": eta}
        self.solver = solvers.make(solver, **{name: value for name, value in options.items() if value is not None})
        check_gradient(gradient, self.solver.has_adjoint)
        t_end = t_end if t_end is not None else 0.0 if grid == "chain" or score.schedule.t_min > 1e-5 else 1e-5
        lowest, highest = _range(t_star, t_delta)
        t_largest = score.schedule.t_max if time == "own" else 1.0
        if not 0 < lowest <= highest <= t_largest:
            raise ValueError(f"t_star must lie in (0, {t_largest:g}], got {_shown(t_star, t_delta)}")
        if not 0 <= t_end < lowest:
            raise ValueError(f"t_end must lie in [0, t_star={_shown(t_star, t_delta)}), got {t_end}")
        if (
            t_end == 0
            and score.schedule.sigma(score.schedule.t_min) == 0
            and (self.solver.evaluates_end or gradient == "adjoint")
        ):
            raise ValueError(
                f"t_end=0 has no score, which {'the adjoint' if gradient == 'adjoint' else self.solver} asks for there;"
                " give a small t_end"
            )
        self.t_star = t_star
        self.steps = steps
        self.gradient = gradient
        self.t_end = t_end
        self.grid = grid
        self.time = time
        self.noising = noising
        self.t_delta = t_delta
        self._check_own_times(lowest, highest)
        if noising == "discrete" and (t_delta or isinstance(t_star, Tensor)):
            raise ValueError(
                'noising="discrete" is a chain that all images leave at the same step; it goes with one t_star and'
                " t_delta=0"
            )
        # the grid and the marginal at its start, where no image has its own
        self._fixed: tuple[Times, float | Tensor, float | Tensor] | None = None
        if not t_delta and not isinstance(t_star, Tensor):
            start = self._own_time(highest)
            self._fixed = (self._grid(start), *self._marginal(start))
        ends = torch.tensor([lowest, highest], dtype=torch.float64)
        self.solver.build(score, self._fixed[0] if self._fixed else self._grid(self._own_time(ends)))

    def _check_own_times(self, lowest: float, highest: float) -> None:
        """Raises ValueError where the way does not lie within the score model's own times, in the right direction."""
        score, t_star = self.score, _shown(self.t_star, self.t_delta)
        start, end = self._own_time(highest), self._own_time(self.t_end)
        if start > score.t_max:
            own = "" if self.time == "own" else f", {start:g} in the score model's own time,"
            raise ValueError(
                f"t_star={t_star}{own} is beyond t_max={score.t_max}, the largest time that the score network was"
                " trained on"
            )
        if end < score.schedule.t_min:
            raise ValueError(
                f"t_end={self.t_end} lies before {score.schedule.t_min:g}, where this score model's process begins; 0"
                " stands for its beginning"
            )
        if not end < self._own_time(lowest):
            raise ValueError(f"t_star={t_star} has no more noise than this score model's process begins with")

    def path(self, x: Tensor, keys: Tensor) -> Path:
        """See `Purifier.path`."""
        noise = standard_normal(keys, Stage.FORWARD, 0, tuple(x.shape[1:]), x.dtype)
        schedule = self.score.schedule
        if self._fixed:
            times, *marginal = self._fixed
        else:
            start = self._start(x, keys)
            times, marginal = self._grid(start), [*self._marginal(start)]

        def noised(image: Tensor, step: int) -> Tensor:
            alpha, sigma = (schedule.alpha(times[step]), schedule.sigma(times[step])) if step else marginal
            return per_image(alpha, image) * image + per_image(sigma, image) * noise

        return Path(self.solver.build(self.score, times), noised, times)

    def _start(self, x: Tensor, keys: Tensor) -> Tensor:
        """(b,) float64: where each image's way back begins, in the schedule's time."""
        if isinstance(self.t_star, Tensor) and len(self.t_star) != len(x):
            raise ValueError(
                f"t_star has {len(self.t_star)} times, one for each image of a batch, x has {len(x)} images"
            )
        t_star = torch.as_tensor(self.t_star, dtype=torch.float64, device=x.device).expand(len(x))
        if self.t_delta:
            t_star = t_star + self.t_delta * (2 * uniform(keys, Purpose.TIME) - 1)
        return self._own_time(t_star)

    def _own_time(self, t: Time) -> Time:
        """`t` in the time of the schedule; 0 is its beginning."""
        if not isinstance(t, Tensor) and t == 0:
            return self.score.schedule.t_min
        return t if self.time == "own" else self.score.time_of_vp(t)

    def _grid(self, start: float | Tensor) -> Times:
        return time_grid(
            start, self._own_time(self.t_end), self.solver.intervals(self.steps), self.grid, self.score.schedule
        )

    def _marginal(self, start: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Factors of the image and of the noise."""
        schedule = self.score.schedule
        if self.noising == "continuous":
            return schedule.alpha(start), schedule.sigma(start)
        if not isinstance(schedule, LinearVP):
            raise ValueError(
                f'noising="discrete" is DDPM\'s chain, for a LinearVP schedule; this score model has {schedule}'
            )
        return schedule.chain_marginal(float(start))

    def marginal(self) -> tuple[float, float]:
        """Factors of the image and of the noise at t_star. Raises ValueError where every image has its own."""
        if self._fixed is None:
            raise ValueError("every image has a t_star of its own here")
        return float(self._fixed[1]), float(self._fixed[2])

    def extra_repr(self) -> str:
        return (
            f"t_star={_shown(self.t_star, self.t_delta)}, steps={self.steps}, gradient={self.gradient!r},"
            f" solver={self.solver}, t_end={self.t_end}, grid={self.grid!r}, time={self.time!r},"
            f" noising={self.noising!r}"
        )


def _range(t_star: float | Tensor, t_delta: float) -> tuple[float, float]:
    """The smallest and the largest time that an image can be diffused to."""
    if not t_delta >= 0:
        raise ValueError(f"t_delta must be at least 0, got {t_delta}")
    if isinstance(t_star, Tensor):
        if t_star.ndim != 1 or not len(t_star) or not t_star.is_floating_point():
            raise ValueError(
                f"t_star must be a number, or floating-point times (b,), got {t_star.dtype} of shape"
                f" {tuple(t_star.shape)}"
            )
        return float(t_star.min()) - t_delta, float(t_star.max()) + t_delta
    return t_star - t_delta, t_star + t_delta


def _shown(t_star: float | Tensor, t_delta: float) -> str:
    center = (
        f"({len(t_star)} times from {float(t_star.min()):g} to {float(t_star.max()):g})"
        if isinstance(t_star, Tensor)
        else str(t_star)
    )
    return f"{center} +- {t_delta}" if t_delta else center
