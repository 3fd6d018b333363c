"""DDIM (Song, Meng & Ermon 2021, arXiv 2010.02502)."""

from dataclasses import dataclass

from torch import Tensor

from purify.noise import Stage
from purify.solvers.base import Levels, StepRule, normals, scaled


@dataclass(frozen=True)
class DDIM(StepRule):
    """Eq. 12: x_s = alpha_s x0 + sqrt(sigma_s^2 - e^2) n + e z, with the predicted clean image x0 and noise n, and
    fresh normals z.

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
        if not self.eta >= 0:
            raise ValueError(f"eta must be at least 0, got {self.eta}")

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
        alpha, sigma = levels.alpha(index + 1), levels.sigma(index + 1)
        kept = levels.ratio(index + 1) / levels.ratio(index)
        old_noise = sigma * (1 - self.eta**2 + (self.eta * kept) ** 2) ** 0.5
        x = scaled(alpha / levels.alpha(index), state) + scaled(
            old_noise - alpha * levels.ratio(index), levels.noise(index, state)
        )
        if self.eta == 0:
            return x
        return x + scaled(self.eta * sigma * (1 - kept**2) ** 0.5, normals(keys, Stage.INCREMENT, index, state))
