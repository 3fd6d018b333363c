"""DDPM's ancestral sampling (Ho et al. 2020, arXiv 2006.11239), with learned variances (Nichol & Dhariwal 2021, arXiv
2102.09672).
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from purify.noise import Stage
from purify.schedules.elementwise import log
from purify.solvers.base import Levels, StepRule, normals, scaled

Variance = Literal["small", "large", "learned"]


@dataclass(frozen=True)
class Ancestral(StepRule):
    """A draw of x_s around the mean of q(x_s | x_t, x0) at the predicted clean image x0 (Ho et al., eqs. 6, 7 and 11).

    For any process and any two levels, r = sigma / alpha: mean (alpha_s / alpha_t) x_t + alpha_s (r_s^2 / r_t - r_t) n.
    On the grid of all steps of a chain that is DDPM's own step; a coarser grid is a sub-sequence of the chain (Nichol &
    Dhariwal, section 4). Weak order 1 of the reverse SDE. One normal a pixel and step.

    Args:
        variance: "small", sigma_s^2 (1 - (r_s / r_t)^2), that of q(x_s | x_t, x0), DDPM's beta-tilde; "large", that of
            the forward process from s to t, DDPM's beta; or "learned", the network's own choice between the two, for
            score models with learned variance. With "large" and "learned" the last step adds no noise, as DDPM's; with
            "small" it adds what belongs to t_end.

    Raises:
        ValueError: settings unknown.
    """

    variance: Variance = "small"

    def __post_init__(self) -> None:
        if self.variance not in get_args(Variance):
            raise ValueError(f"variance={self.variance!r} is not one of {', '.join(get_args(Variance))}")

    def check(self, levels: Levels) -> None:
        """See `StepRule.check`."""
        if self.variance == "learned" and not levels.score.learned_variance:
            raise ValueError(
                'variance="learned" needs a score model with learned_variance=True; this one has none, take "small" or'
                ' "large"'
            )

    def step(self, levels: Levels, index: int, state: Tensor, keys: Tensor) -> Tensor:
        """See `StepRule.step`."""
        ratio, kept, alpha = levels.ratio(index), levels.ratio(index + 1) / levels.ratio(index), levels.alpha(index + 1)
        if self.variance == "learned":
            noise, between = levels.score.noise_and_variance(state, levels.times[index])
        else:
            noise = levels.noise(index, state)
        mean = scaled(alpha / levels.alpha(index), state) + scaled(alpha * ratio * (kept**2 - 1), noise)
        if self.variance != "small" and levels.is_last(index):
            return mean
        z = normals(keys, Stage.INCREMENT, index, state)
        small = levels.sigma(index + 1) * (1 - kept**2) ** 0.5
        if self.variance == "small":
            return mean + scaled(small, z)
        large = levels.transition(index)[1]
        if self.variance == "large":
            return mean + scaled(large, z)
        return mean + scaled(small, scaled(log(large / small), (between + 1) / 2).exp() * z)
