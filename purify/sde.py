"""The reverse-time SDE on a grid of times."""

from typing import Literal

import numpy as np
from torch import Tensor

from purify.score import ScoreModel

Grid = Literal["uniform", "quadratic", "diffpure"]


def time_grid(t_star: float, t_end: float, steps: int, grid: Grid = "uniform") -> tuple[float, ...]:
    """steps + 1 times from `t_star` down to `t_end`.

    "uniform" has equal steps. "quadratic" shrinks them towards the data, t_i = t_end + (t_star - t_end) (1 - i/steps)^2: with few steps this
    leaves much less of the last steps' noise in the result. "diffpure" are DiffPure's own times, for parity with its numbers: steps of t_star / steps, the
    last one shortened by t_end, added up in float32 in the reverse time s = 1 - t.
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
    return (*map(float, times), float(one - end))


class ReverseSDE:
    """dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw, for dt < 0, over the pieces of a time grid.

    eta = 1 is Anderson's reverse SDE (Song et al. 2021, arXiv 2011.13456, eq. 6), eta = 0 the probability-flow ODE (eq. 13); every eta
    has the same marginals. The clock u in [0, n] counts steps: t is piecewise linear in u with the grid's times at the integers, and drift and
    diffusion are per unit of u. So solvers walk integers whatever the grid is, and times are never compared as floats.

    Args:
        score: the score model, on the scale of [-1, 1].
        times: the grid, strictly decreasing.
        eta: share of the noise, >= 0.
    """

    def __init__(self, score: ScoreModel, times: tuple[float, ...], eta: float = 1.0):
        self.score = score
        self.times = times
        self.eta = eta

    def drift(self, u: float, x: Tensor, closed: Literal["left", "right"] = "left") -> Tensor:
        """dx/du without noise at x (b, c, h, w); `closed` says to which piece an inner integer u belongs: [u, u+1) or (u-1, u]."""
        t, dt = self._piece(u, closed)
        schedule = self.score.schedule
        # g^2 score = -g^2/sigma E[n | x_t]
        weight = 0.5 * (1 + self.eta**2) * schedule.diffusion(t) ** 2 / schedule.sigma(t)
        return (dt * schedule.drift(t)) * x + (dt * weight) * self.score.noise(x, t)

    def diffusion(self, u: float, closed: Literal["left", "right"] = "left") -> float:
        """Standard deviation of the noise per square root of u, the same for all pixels."""
        t, dt = self._piece(u, closed)
        return self.eta * self.score.schedule.diffusion(t) * (-dt) ** 0.5

    def _piece(self, u: float, closed: Literal["left", "right"]) -> tuple[float, float]:
        """The time at u, and dt/du on the piece that u belongs to."""
        last = len(self.times) - 2
        i = min(max(int(u) - (closed == "right" and u == int(u)), 0), last)
        dt = self.times[i + 1] - self.times[i]
        return (self.times[int(u)] if u == int(u) else self.times[i] + (u - i) * dt), dt
