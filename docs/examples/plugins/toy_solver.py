"""A solver of one's own: a frozen dataclass of settings, with the formula of a step."""

from dataclasses import dataclass

from torch import Tensor

from purify.solvers import Levels, StepRule


@dataclass(frozen=True)
class Shrink(StepRule):
    """Goes a share of the way to the clean image that the network expects, and the rest with the noise that it sees.

    Args:
        share: of the noise level that a step takes away beyond the grid's own, in [0, 1).
    """

    share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share must lie in [0, 1), got {self.share}")

    def step(self, levels: Levels, index: int, state: Tensor, keys: Tensor) -> Tensor:
        """x_s = alpha_s x0 + (1 - share) sigma_s n, with the predicted clean image x0 and noise n."""
        noise = levels.noise(index, state)
        clean = (state - levels.sigma(index) * noise) / levels.alpha(index)
        return levels.alpha(index + 1) * clean + (1 - self.share) * levels.sigma(index + 1) * noise
