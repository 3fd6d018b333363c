"""EDM's process, whose time is the noise level."""

from dataclasses import dataclass
from typing import ClassVar

from purify.schedules.base import Time
from purify.schedules.elementwise import Number, sqrt


@dataclass(frozen=True)
class EDM:
    """alpha = 1, sigma(t) = t (Karras et al. 2022, arXiv 2206.00364): the time is the noise level."""

    sigma_max: float = 80.0
    t_min: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not self.sigma_max > 0:
            raise ValueError(f"EDM needs sigma_max > 0, got {self.sigma_max}")

    @property
    def t_max(self) -> float:
        return self.sigma_max

    def alpha(self, t: Time) -> Time:
        return 0 * t + 1

    def sigma(self, t: Time) -> Time:
        return 1 * t

    def drift(self, t: Time) -> Time:
        return 0 * t

    def diffusion(self, t: Time) -> Time:
        return sqrt(2 * t)

    def time_of(self, noise_to_signal: Number) -> Number:
        return noise_to_signal
