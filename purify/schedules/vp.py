"""Processes with a beta that is linear in time: variance-preserving and sub-VP."""

import math
from dataclasses import dataclass
from typing import ClassVar

from purify.schedules.base import Time
from purify.schedules.elementwise import Number, asinh, exp, expm1, log1p, sqrt


@dataclass(frozen=True)
class _LinearBeta:
    """beta(t) = beta_min + t (beta_max - beta_min) on (0, 1]. The defaults are those of score_sde and DiffPure."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(
                f"{type(self).__name__} needs 0 < beta_min <= beta_max, got beta_min={self.beta_min},"
                f" beta_max={self.beta_max}"
            )

    def beta(self, t: Time) -> Time:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integrated_beta(self, t: Time) -> Time:
        """int_0^t beta."""
        return t * self.beta_min + t * t * (0.5 * (self.beta_max - self.beta_min))

    def alpha(self, t: Time) -> Time:
        return exp(-0.5 * self.integrated_beta(t))

    def drift(self, t: Time) -> Time:
        return -0.5 * self.beta(t)

    def _time_of_integral(self, integral: Number) -> Number:
        """The t with integrated_beta(t) = `integral`."""
        return 2 * integral / (self.beta_min + sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral))


@dataclass(frozen=True)
class LinearVP(_LinearBeta):
    """Variance-preserving process with linear beta (Song et al. 2021, arXiv 2011.13456): alpha^2 + sigma^2 = 1 at every
    t.
    """

    def sigma(self, t: Time) -> Time:
        return sqrt(-expm1(-self.integrated_beta(t)))

    def diffusion(self, t: Time) -> Time:
        return sqrt(self.beta(t))

    def time_of(self, noise_to_signal: Number) -> Number:
        return self._time_of_integral(log1p(noise_to_signal**2))

    def chain_marginal(self, t: float, length: int = 1000) -> tuple[float, float]:
        """alpha and sigma after `t * length` steps of the DDPM chain with betas from beta_min / length to beta_max /
        length.

        What DiffPure noises images with. It differs from `alpha(t)` and `sigma(t)`, its limit, by terms in 1 / length.

        Raises:
            ValueError: `t` is not a whole number of steps from 1 to `length`.
        """
        count = round(t * length)
        if not 1 <= count <= length or abs(count - t * length) > 1e-6:
            raise ValueError(f"t must be a multiple of 1/{length} in (0, 1], as the chain has {length} steps, got {t}")
        width = (self.beta_max - self.beta_min) / (length - 1)
        log_alpha_bar = math.fsum(math.log1p(-(self.beta_min + width * i) / length) for i in range(count))
        return math.exp(0.5 * log_alpha_bar), math.sqrt(-math.expm1(log_alpha_bar))


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-VP process (Song et al. 2021, section 3.4): the drift of VP with less noise, sigma = 1 - alpha^2."""

    def sigma(self, t: Time) -> Time:
        return -expm1(-self.integrated_beta(t))

    def diffusion(self, t: Time) -> Time:
        return sqrt(self.beta(t) * -expm1(-2 * self.integrated_beta(t)))

    def time_of(self, noise_to_signal: Number) -> Number:
        return self._time_of_integral(2 * asinh(noise_to_signal / 2))
