"""DDIM (Song, Meng & Ermon 2021, arXiv 2010.02502)."""

from dataclasses import dataclass

from torch import Tensor

from purify.checks import check_not_negative
from purify.noise import Stage
from purify.solvers.base import Levels, StepRule, normals, scaled


@dataclass(frozen=True)
class DDIM(StepRule):
    """Eq. 12: x_s = alpha_s x0 + sqrt(sigma_s^2 - e^2) n + e z, with the predicted clean image x0 and noise n, and
    fresh normals z; alpha_s x0 = (alpha_s / alpha_t) x_t - alpha_s r_t n.

    e = eta sigma_s sqrt(1 - (r_s / r_t)^2) with r = sigma / alpha, which is the paper's eq. 16 for a
    variance-preserving process. Order 1: strong and deterministic for eta = 0, an Euler step of the probability-flow
    ODE in r, and weak for eta > 0, where the limit is the process with that `eta` of `purify.solvers.sde.ReverseSDE`.
    One normal a pixel and step for eta > 0.

    Args:
        eta: share of the noise on the way back, from 0 (published default). 1 is DDPM's ancestral step with the "small"
            variance. Beyond 1 only as far as the root stays real, which depends on the grid.

    Raises:
        ValueError: settings out of range.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative(eta=self.eta)

    def check(self, levels: Levels) -> None:
        """See `StepRule.check`."""
        if self.eta <= 1:
            return
        for index in range(levels.steps):
            kept = levels.ratio(index + 1) / levels.ratio(index)
            kept = float(kept.min()) if isinstance(kept, Tensor) else kept
            if self.eta**2 * (1 - kept**2) > 1:
                raise ValueError(
                    f"eta={self.eta} takes more noise than step {index} of this grid leaves, sqrt(sigma_s^2 - e^2)"
                    f" would be imaginary: eta must be at most {(1 - kept**2) ** -0.5:.6g} there; 1 fits every grid"
                )

    def step(self, levels: Levels, index: int, state: Tensor, keys: Tensor) -> Tensor:
        """See `StepRule.step`."""
        x_t = state
        alpha_t, r_t = levels.alpha(index), levels.ratio(index)
        alpha_s, sigma_s, r_s = levels.alpha(index + 1), levels.sigma(index + 1), levels.ratio(index + 1)
        q = r_s / r_t
        root = sigma_s * (1 - self.eta**2 + (self.eta * q) ** 2) ** 0.5  # sqrt(sigma_s^2 - e^2)
        x_s = scaled(alpha_s / alpha_t, x_t)  # first, as gradients are added up in this order
        n = levels.noise(index, x_t)
        x_s = x_s + scaled(root - alpha_s * r_t, n)
        if self.eta == 0:
            return x_s
        e = self.eta * sigma_s * (1 - q**2) ** 0.5
        z = normals(keys, Stage.INCREMENT, index, x_t)
        return x_s + scaled(e, z)
