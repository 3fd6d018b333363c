"""The SDEs that purify, each on a clock that counts steps.

A solver sees drift and diffusion per unit of the clock u in [0, steps] and walks integers, whatever times the steps stand for: times are never
compared as floats.
"""

import itertools
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from purify.score import ScoreModel

Grid = Literal["uniform", "quadratic", "diffpure"]


def time_grid(t_star: float, t_end: float, steps: int, grid: Grid = "uniform") -> tuple[float, ...]:
    """steps + 1 times from `t_star` down to `t_end`.

    "uniform" has equal steps. "quadratic" shrinks them towards the data, t_i = t_end + (t_star - t_end) (1 - i/steps)^2: with few steps this
    leaves much less of the last steps' noise in the result. "diffpure" are DiffPure's own times, for parity with its numbers: steps of t_star / steps, the
    last one shortened by t_end, added up in float32 in the reverse time s = 1 - t.

    Raises:
        ValueError: on the "diffpure" grid, a step that is not longer than t_end, or more steps than float32 can tell apart.
    """
    if grid == "diffpure":
        return _diffpure_grid(t_star, t_end, steps)
    power = {"uniform": 1, "quadratic": 2}[grid]
    inner = (t_end + (t_star - t_end) * (1 - i / steps) ** power for i in range(1, steps))
    return (t_star, *inner, t_end)


def _diffpure_grid(t_star: float, t_end: float, steps: int) -> tuple[float, ...]:
    one, s, end, ds = (np.float32(value) for value in (1, 1 - t_star, 1 - t_end, t_star / steps))
    times = [one - s]
    for _ in range(steps - 1):
        s = s + ds
        times.append(one - s)
    times = [*map(float, times), float(one - end)]
    if any(later >= earlier for earlier, later in itertools.pairwise(times)):
        raise ValueError(f'grid="diffpure" cannot take steps={steps} from t_star={t_star} to t_end={t_end}: in float32 the last ones would overlap')
    return tuple(times)


Side = Literal["left", "right"]
"""To which piece of the clock an inner integer u belongs: [u, u + 1) for "left", (u - 1, u] for "right"."""


class SDE(Protocol):
    """An Ito equation with additive noise, dx = drift du + diffusion dw, on the clock u in [0, steps]."""

    steps: int
    guided: bool
    """Whether the drift looks at the image that is purified."""

    def drift(self, u: float, x: Tensor, image: Tensor | None, closed: Side) -> Tensor:
        """dx/du without noise at x (b, c, h, w); `image` (b, c, h, w) where the equation is guided by it."""

    def diffusion(self, u: float, closed: Side) -> float:
        """Standard deviation of the noise per square root of u, the same for all pixels."""


class ReverseSDE:
    """dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw, for dt < 0, over the pieces of a time grid.

    eta = 1 is Anderson's reverse SDE (Song et al. 2021, arXiv 2011.13456, eq. 6), eta = 0 the probability-flow ODE (eq. 13); every eta
    has the same marginals. t is piecewise linear in the clock u with the grid's times at the integers.

    Args:
        score: the score model.
        times: the grid, strictly decreasing.
        eta: share of the noise, >= 0.
    """

    guided = False

    def __init__(self, score: ScoreModel, times: tuple[float, ...], eta: float = 1.0):
        self.score = score
        self.times = times
        self.eta = eta
        self.steps = len(times) - 1

    def drift(self, u: float, x: Tensor, image: Tensor | None = None, closed: Side = "left") -> Tensor:
        """See `SDE.drift`; `image` is not looked at."""
        t, dt = self._piece(u, closed)
        schedule = self.score.schedule
        # g^2 score = -g^2/sigma E[n | x_t]
        weight = 0.5 * (1 + self.eta**2) * schedule.diffusion(t) ** 2 / schedule.sigma(t)
        return (dt * schedule.drift(t)) * x + (dt * weight) * self.score.noise(x, t)

    def diffusion(self, u: float, closed: Side = "left") -> float:
        """See `SDE.diffusion`."""
        t, dt = self._piece(u, closed)
        return self.eta * self.score.schedule.diffusion(t) * (-dt) ** 0.5

    def _piece(self, u: float, closed: Side) -> tuple[float, float]:
        """The time at u, and dt/du on the piece that u belongs to."""
        i = min(max(int(u) - (closed == "right" and u == int(u)), 0), self.steps - 1)
        dt = self.times[i + 1] - self.times[i]
        return (self.times[int(u)] if u == int(u) else self.times[i] + (u - i) * dt), dt


class LangevinSDE:
    """dx = -lambda/2 [(x - image)/sigma^2 - score(x, t)] ds + eta sqrt(lambda) dw: Langevin dynamics around the image, at one fixed noise level t.

    DiffPure's LD-SDE (Nie et al. 2022, arXiv 2205.07460, appendix). Every unit of the clock is `ds`.

    Args:
        score: the score model.
        steps: length of the clock.
        ds: pseudo-time of a step.
        t: where the score is taken.
        lam: speed lambda.
        sigma2: variance sigma^2 of the pull towards the image.
        eta: factor of the noise; 1 would sample from the posterior.
    """

    guided = True

    def __init__(self, score: ScoreModel, steps: int, ds: float, t: float, lam: float, sigma2: float, eta: float):
        self.score = score
        self.steps = steps
        self.ds, self.t, self.lam, self.sigma2, self.eta = ds, t, lam, sigma2, eta

    def drift(self, u: float, x: Tensor, image: Tensor | None = None, closed: Side = "left") -> Tensor:
        """See `SDE.drift`."""
        assert image is not None
        return (-0.5 * self.lam * self.ds) * ((x - image) / self.sigma2 - self.score.score(x, self.t))

    def diffusion(self, u: float, closed: Side = "left") -> float:
        """See `SDE.diffusion`."""
        return self.eta * (self.lam * self.ds) ** 0.5
