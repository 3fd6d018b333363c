"""DDPM's ancestral sampling (Ho et al. 2020, arXiv 2006.11239), with learned variances (Nichol & Dhariwal 2021, arXiv
2102.09672).
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from purify.checks import check_choice
from purify.noise import Stage
from purify.schedules.elementwise import log
from purify.solvers.base import Levels, StepRule, normals, scaled

Variance = Literal["small", "large", "learned"]


@dataclass(frozen=True)
class Ancestral(StepRule):
    """A draw of x_s around the mean of q(x_s | x_t, x0) at the predicted clean image x0 (Ho et al., eqs. 6, 7 and 11).

    For any process and any two levels, r = sigma / alpha: mean (alpha_s / alpha_t) x_t + alpha_s r_t (q^2 - 1) n with
    q = r_s / r_t and the predicted noise n; the standard deviation is what `variance` says.
    On the grid of all steps of a chain that is DDPM's own step; a coarser grid is a sub-sequence of the chain (Nichol &
    Dhariwal, section 4). Weak order 1 of the reverse SDE. One normal a pixel and step.

    Args:
        variance: "small", sigma_s^2 (1 - q^2), that of q(x_s | x_t, x0), DDPM's beta-tilde; "large", that of
            the forward process from s to t, DDPM's beta; or "learned", the network's own choice between the two, for
            score models with learned variance. With "large" and "learned" the last step adds no noise, as DDPM's; with
            "small" it adds what belongs to t_end.

    Raises:
        ValueError: settings unknown.
    """

    variance: Variance = "small"

    def __post_init__(self) -> None:
        check_choice(get_args(Variance), variance=self.variance)

    def check(self, levels: Levels) -> None:
        """See `StepRule.check`."""
        if self.variance == "learned" and not levels.score.learned_variance:
            raise ValueError(
                'variance="learned" needs a score model with learned_variance=True; this one has none, take "small" or'
                ' "large"'
            )

    def step(self, levels: Levels, index: int, state: Tensor, keys: Tensor) -> Tensor:
        """See `StepRule.step`."""
        x_t = state
        alpha_t, r_t = levels.alpha(index), levels.ratio(index)
        alpha_s, sigma_s, r_s = levels.alpha(index + 1), levels.sigma(index + 1), levels.ratio(index + 1)
        q = r_s / r_t
        v: Tensor | None = None  # learned
        if self.variance == "learned":
            n, v = levels.score.noise_and_variance(x_t, levels.times[index])
        else:
            n = levels.noise(index, x_t)
        mean = scaled(alpha_s / alpha_t, x_t) + scaled(alpha_s * r_t * (q**2 - 1), n)
        if self.variance != "small" and levels.is_last(index):
            return mean
        z = normals(keys, Stage.INCREMENT, index, x_t)
        small = sigma_s * (1 - q**2) ** 0.5
        if self.variance == "small":
            return mean + scaled(small, z)
        _, large = levels.transition(index)
        if v is None:
            return mean + scaled(large, z)
        share = scaled(log(large / small), (v + 1) / 2).exp()  # from small, at v = -1, to large, at v = 1
        return mean + scaled(small, share * z)
