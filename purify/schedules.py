"""Noise schedules: what the forward process does to an image up to time t.

Every schedule has the marginal x_t = alpha(t) x_0 + sigma(t) n with n ~ N(0, I), and the Ito equation dx = f(t) x dt + g(t) dw that
produces it. Times run from data (0) to noise (1). All methods are elementwise: they take a float or a tensor of times and return
the same kind, computed in float64 where a float comes in.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

Time = TypeVar("Time", float, Tensor)


class Schedule(Protocol):
    """What the rest of the package asks of a noise schedule."""

    def alpha(self, t: Time) -> Time:
        """Factor of the data in the marginal."""

    def sigma(self, t: Time) -> Time:
        """Standard deviation of the noise in the marginal."""

    def drift(self, t: Time) -> Time:
        """f(t) of dx = f(t) x dt + g(t) dw, per unit of time."""

    def diffusion(self, t: Time) -> Time:
        """g(t) of dx = f(t) x dt + g(t) dw."""


def _exp(x: Time) -> Time:
    return x.exp() if isinstance(x, Tensor) else math.exp(x)


def _expm1(x: Time) -> Time:
    return x.expm1() if isinstance(x, Tensor) else math.expm1(x)


def _sqrt(x: Time) -> Time:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


@dataclass(frozen=True)
class LinearVP:
    """Variance-preserving process with beta(t) = beta_min + t (beta_max - beta_min) (Song et al. 2021, arXiv 2011.13456).

    alpha^2 + sigma^2 = 1 at every t. The defaults are those of score_sde and DiffPure.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(f"LinearVP needs 0 < beta_min <= beta_max, got beta_min={self.beta_min}, beta_max={self.beta_max}")

    def beta(self, t: Time) -> Time:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integrated_beta(self, t: Time) -> Time:
        """int_0^t beta."""
        return t * self.beta_min + t * t * (0.5 * (self.beta_max - self.beta_min))

    def alpha(self, t: Time) -> Time:
        return _exp(-0.5 * self.integrated_beta(t))

    def sigma(self, t: Time) -> Time:
        return _sqrt(-_expm1(-self.integrated_beta(t)))

    def chain_marginal(self, t: float, length: int = 1000) -> tuple[float, float]:
        """alpha and sigma after `t * length` steps of the DDPM chain with betas from beta_min / length to beta_max / length.

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

    def drift(self, t: Time) -> Time:
        return -0.5 * self.beta(t)

    def diffusion(self, t: Time) -> Time:
        return _sqrt(self.beta(t))


SCHEDULES: dict[str, type] = {"LinearVP": LinearVP}


def describe(schedule: Schedule) -> dict[str, Any]:
    """A JSON-compatible description that `from_description` turns back into the schedule."""
    return {"name": type(schedule).__name__, **asdict(schedule)}  # type: ignore[call-overload]


def from_description(description: dict[str, Any]) -> Schedule:
    """The schedule that `describe` described. Raises ValueError for a name that is not in `SCHEDULES`."""
    arguments = dict(description)
    name = arguments.pop("name", None)
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(sorted(SCHEDULES))}")
    return SCHEDULES[name](**arguments)
