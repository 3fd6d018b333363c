"""The variance-exploding process."""

import math
from dataclasses import dataclass
from typing import ClassVar

from purify.schedules.base import Time
from purify.schedules.elementwise import Number, exp, log


@dataclass(frozen=True)
class VE:
    """Variance-exploding process with geometric sigma(t) from sigma_min to sigma_max on [0, 1] (Song et al. 2021); it
    starts at sigma_min.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"VE needs 0 < sigma_min < sigma_max, got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Time) -> Time:
        return 0 * t + 1

    def sigma(self, t: Time) -> Time:
        return self.sigma_min * exp(self._rate * t)

    def drift(self, t: Time) -> Time:
        return 0 * t

    def diffusion(self, t: Time) -> Time:
        return self.sigma(t) * math.sqrt(2 * self._rate)

    def time_of(self, noise_to_signal: Number) -> Number:
        return log(noise_to_signal / self.sigma_min) / self._rate
