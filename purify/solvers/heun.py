"""EDM's stochastic sampler with Heun steps (Karras et al. 2022, arXiv 2206.00364)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from purify.noise import Stage
from purify.solvers.base import Levels, StepRule, normals, scaled


@dataclass(frozen=True)
class Heun(StepRule):
    """Algorithm 2, for any process through y = x / alpha and its noise level r = sigma / alpha, which is the paper's
    sigma.

    Every step first churns: noise raises the level to r (1 + gamma), gamma = min(S_churn / N, sqrt(2) - 1) where S_tmin
    <= r <= S_tmax and 0 elsewhere, N the number of steps. Then the probability-flow ODE dy/dr = n goes down to the next
    level by Heun's method; in the last step by Euler's, so that n steps cost 2 n - 1 evaluations. Without churn
    deterministic, of order 2 on grids with steps even in some power of r such as "karras", the paper's (eq. 5, rho 7);
    "uniform" ones are too coarse near the data for it. With churn there is one normal a pixel and churned step, and as
    N grows at fixed S_churn the marginals are kept to order 2.

    Args:
        S_churn: amount of noise, >= 0. The paper's code has 0; its table 5 has 30 for CIFAR-10 and 80 or 40 for
            ImageNet-64.
        S_tmin: lowest noise level to churn at, >= 0. Default 0, as the code; CIFAR-10 0.01, ImageNet 0.05.
        S_tmax: highest noise level to churn at. Default infinity, as the code; CIFAR-10 1, ImageNet 50.
        S_noise: standard deviation of the churned normals, > 0. Default 1, as the code; CIFAR-10 1.007, ImageNet 1.003.

    Raises:
        ValueError: settings out of range.
    """

    S_churn: float = 0.0
    S_tmin: float = 0.0
    S_tmax: float = math.inf
    S_noise: float = 1.0

    evaluations: ClassVar[int] = 2
    spared: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.S_churn < math.inf:
            raise ValueError(f"S_churn must be a number from 0, got {self.S_churn}")
        if not 0 <= self.S_tmin <= self.S_tmax:
            raise ValueError(
                f"S_tmin and S_tmax must be noise levels with 0 <= S_tmin <= S_tmax, got {self.S_tmin} and"
                f" {self.S_tmax}"
            )
        if not 0 < self.S_noise < math.inf:
            raise ValueError(f"S_noise must be a positive number, got {self.S_noise}")

    def check(self, levels: Levels) -> None:
        """See `StepRule.check`."""
        for index in range(levels.steps if self.S_churn else 0):
            top = float(torch.as_tensor(self._churned(levels, index)[1]).max())
            if top > levels.score.t_max * (1 + 1e-12):
                raise ValueError(
                    f"S_churn={self.S_churn} raises the noise of step {index} to that of t={top:g}, beyond"
                    f" t_max={levels.score.t_max:g}, the largest time that the score network was trained on; lower"
                    " S_churn, S_tmax or t_star"
                )

    def step(self, levels: Levels, index: int, state: Tensor, keys: Tensor) -> Tensor:
        """See `StepRule.step`."""
        ratio, t = self._churned(levels, index)
        alpha, end = levels.score.schedule.alpha(t), levels.alpha(index + 1)
        if self.S_churn:
            added = alpha * self.S_noise * (ratio**2 - levels.ratio(index) ** 2) ** 0.5
            state = scaled(alpha / levels.alpha(index), state) + scaled(added, normals(keys, Stage.CHURN, index, state))
        kept, move = scaled(end / alpha, state), end * (levels.ratio(index + 1) - ratio)
        slope = levels.score.noise(state, t)
        x = kept + scaled(move, slope)
        return x if levels.is_last(index) else kept + scaled(move, (slope + levels.noise(index + 1, x)) / 2)

    def _churned(self, levels: Levels, index: int) -> tuple[float | Tensor, float | Tensor]:
        """The noise level that step `index` begins with, and its time; those of the grid where nothing is churned."""
        ratio, t = levels.ratio(index), levels.times[index]
        gamma = min(self.S_churn / levels.steps, math.sqrt(2) - 1)
        inside = (ratio >= self.S_tmin) & (ratio <= self.S_tmax)
        if not isinstance(ratio, Tensor):
            return (
                (ratio * (1 + gamma), levels.score.schedule.time_of(ratio * (1 + gamma)))
                if gamma and inside
                else (ratio, t)
            )
        raised = ratio * (1 + gamma)
        return torch.where(inside, raised, ratio), (
            torch.where(inside, levels.score.schedule.time_of(raised), t) if gamma else t
        )
