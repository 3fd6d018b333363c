"""EDM's stochastic sampler with Heun steps (Karras et al. 2022, arXiv 2206.00364)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from purify.checks import check_not_negative, check_positive
from purify.noise import Stage
from purify.solvers.base import Levels, StepRule, normals, scaled


@dataclass(frozen=True)
class Heun(StepRule):
    """Algorithm 2, for any process through y = x / alpha and its noise level r = sigma / alpha, which is the paper's
    sigma.

    Every step first churns: noise raises the level r_t to r_hat = r_t (1 + gamma), y_hat = y_t + S_noise sqrt(r_hat^2 -
    r_t^2) z, gamma = min(S_churn / N, sqrt(2) - 1) where S_tmin <= r_t <= S_tmax and 0 elsewhere, N the number of
    steps. Then the probability-flow ODE dy/dr = n goes down to the next level r_s by Heun's method: y_s = y_hat + (r_s
    - r_hat) (n_hat + n_s) / 2, with n_hat the predicted noise at y_hat and n_s that at Euler's y_hat + (r_s - r_hat)
    n_hat, which is the whole of the last step, so that n steps cost 2 n - 1 evaluations.

    Without churn deterministic, of order 2 on grids with steps even in some power of r such as "karras", the paper's
    (eq. 5, rho 7); "uniform" ones are too coarse near the data for it. With churn there is one normal a pixel and
    churned step, and as N grows at fixed S_churn the marginals are kept to order 2.

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

    evaluations = 2
    spared = 1

    def __post_init__(self) -> None:
        check_not_negative(S_churn=self.S_churn)
        if not 0 <= self.S_tmin <= self.S_tmax:
            raise ValueError(
                f"S_tmin and S_tmax must be noise levels with 0 <= S_tmin <= S_tmax, got {self.S_tmin} and"
                f" {self.S_tmax}"
            )
        check_positive(S_noise=self.S_noise)

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
        x_t, (r_hat, t_hat) = state, self._churned(levels, index)
        alpha_t, r_t = levels.alpha(index), levels.ratio(index)
        alpha_hat = levels.score.schedule.alpha(t_hat)
        alpha_s, r_s = levels.alpha(index + 1), levels.ratio(index + 1)
        x_hat = x_t
        if self.S_churn:
            z = normals(keys, Stage.CHURN, index, x_t)
            x_hat = scaled(alpha_hat / alpha_t, x_t) + scaled(alpha_hat * self.S_noise * (r_hat**2 - r_t**2) ** 0.5, z)
        y_hat = scaled(alpha_s / alpha_hat, x_hat)  # alpha_s times the docstring's, as is dr
        dr = alpha_s * (r_s - r_hat)
        n_hat = levels.score.noise(x_hat, t_hat)
        x_s = y_hat + scaled(dr, n_hat)
        if levels.is_last(index):
            return x_s
        n_s = levels.noise(index + 1, x_s)
        return y_hat + scaled(dr, (n_hat + n_s) / 2)

    def _churned(self, levels: Levels, index: int) -> tuple[float | Tensor, float | Tensor]:
        """The noise level that step `index` begins with, and its time; those of the grid where nothing is churned."""
        r, t = levels.ratio(index), levels.times[index]
        gamma = min(self.S_churn / levels.steps, math.sqrt(2) - 1)
        if not gamma:
            return r, t
        r_hat = r * (1 + gamma)
        t_hat = levels.score.schedule.time_of(r_hat)
        if isinstance(r, Tensor):
            inside = (r >= self.S_tmin) & (r <= self.S_tmax)
            return torch.where(inside, r_hat, r), torch.where(inside, t_hat, t)
        return (r_hat, t_hat) if self.S_tmin <= r <= self.S_tmax else (r, t)
