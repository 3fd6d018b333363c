"""Noise schedules: what the forward process does to an image up to time t.

Every schedule has the marginal x_t = alpha(t) x_0 + sigma(t) n with n ~ N(0, I), and the Ito equation dx = f(t) x dt + g(t) dw that
produces it. Times run from data (0) to noise (1). All methods are elementwise: they take a float or a tensor of times and return
the same kind, computed in float64 where a float comes in.
"""

import bisect
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

Time = TypeVar("Time", float, Tensor)


class Schedule(Protocol):
    """What the rest of the package asks of a noise schedule."""

    @property
    def t_max(self) -> float:
        """The end of the process: times lie in (0, t_max]."""

    def alpha(self, t: Time) -> Time:
        """Factor of the data in the marginal."""

    def sigma(self, t: Time) -> Time:
        """Standard deviation of the noise in the marginal."""

    def drift(self, t: Time) -> Time:
        """f(t) of dx = f(t) x dt + g(t) dw, per unit of time."""

    def diffusion(self, t: Time) -> Time:
        """g(t) of dx = f(t) x dt + g(t) dw."""

    def time_of(self, noise_to_signal: float) -> float:
        """The t with sigma(t) / alpha(t) = `noise_to_signal`: the same amount of noise in another process."""


def _exp(x: Time) -> Time:
    return x.exp() if isinstance(x, Tensor) else math.exp(x)


def _expm1(x: Time) -> Time:
    return x.expm1() if isinstance(x, Tensor) else math.expm1(x)


def _sqrt(x: Time) -> Time:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


@dataclass(frozen=True)
class _LinearBeta:
    """beta(t) = beta_min + t (beta_max - beta_min) on (0, 1]. The defaults are those of score_sde and DiffPure."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_max: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(f"{type(self).__name__} needs 0 < beta_min <= beta_max, got beta_min={self.beta_min}, beta_max={self.beta_max}")

    def beta(self, t: Time) -> Time:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integrated_beta(self, t: Time) -> Time:
        """int_0^t beta."""
        return t * self.beta_min + t * t * (0.5 * (self.beta_max - self.beta_min))

    def alpha(self, t: Time) -> Time:
        return _exp(-0.5 * self.integrated_beta(t))

    def drift(self, t: Time) -> Time:
        return -0.5 * self.beta(t)

    def _time_of_integral(self, integral: float) -> float:
        """The t with integrated_beta(t) = `integral`."""
        return 2 * integral / (self.beta_min + math.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral))


@dataclass(frozen=True)
class LinearVP(_LinearBeta):
    """Variance-preserving process with linear beta (Song et al. 2021, arXiv 2011.13456): alpha^2 + sigma^2 = 1 at every t."""

    def sigma(self, t: Time) -> Time:
        return _sqrt(-_expm1(-self.integrated_beta(t)))

    def diffusion(self, t: Time) -> Time:
        return _sqrt(self.beta(t))

    def time_of(self, noise_to_signal: float) -> float:
        return self._time_of_integral(math.log1p(noise_to_signal**2))

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


@dataclass(frozen=True)
class DiscreteVP:
    """The variance-preserving process through a DDPM chain of any betas (Ho et al. 2020, arXiv 2006.11239).

    At t = k / N the marginal is exactly that of k steps of the chain. In between log alpha^2 is linear in t: beta(t) is constant on each ((k - 1) / N, k / N].

    Args:
        betas: the chain's, from the first step, each in (0, 1).
    """

    betas: tuple[float, ...]
    t_max: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))
        if not self.betas or not all(0 < beta < 1 for beta in self.betas):
            raise ValueError(f"DiscreteVP needs betas in (0, 1), got {len(self.betas)} from {min(self.betas, default=None)} to {max(self.betas, default=None)}")

    @classmethod
    def linear(cls, length: int = 1000, first: float = 1e-4, last: float = 0.02) -> "DiscreteVP":
        """Equally spaced betas: DDPM's. Other lengths than 1,000 keep the process with `first` and `last` scaled by 1000 / length, as guided-diffusion does."""
        scale = 1000 / length
        return cls(tuple(torch.linspace(scale * first, scale * last, length, dtype=torch.float64).tolist()))

    @classmethod
    def scaled_linear(cls, length: int = 1000, first: float = 0.00085, last: float = 0.012) -> "DiscreteVP":
        """Square roots of betas equally spaced: latent diffusion's (Rombach et al. 2022, arXiv 2112.10752)."""
        return cls(tuple(torch.linspace(first**0.5, last**0.5, length, dtype=torch.float64).square().tolist()))

    @classmethod
    def cosine(cls, length: int = 1000, largest: float = 0.999) -> "DiscreteVP":
        """alpha(t)^2 = cos^2(pi/2 (t + 0.008) / 1.008), up to a factor (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17), betas at most `largest`."""

        def alpha_bar(k: int) -> float:
            return math.cos((k / length + 0.008) / 1.008 * math.pi / 2) ** 2

        return cls(tuple(min(1 - alpha_bar(k + 1) / alpha_bar(k), largest) for k in range(length)))

    def beta(self, t: Time) -> Time:
        return self._rate_and_integral(t)[0]

    def alpha(self, t: Time) -> Time:
        return _exp(-0.5 * self._rate_and_integral(t)[1])

    def sigma(self, t: Time) -> Time:
        return _sqrt(-_expm1(-self._rate_and_integral(t)[1]))

    def drift(self, t: Time) -> Time:
        return -0.5 * self.beta(t)

    def diffusion(self, t: Time) -> Time:
        return _sqrt(self.beta(t))

    def time_of(self, noise_to_signal: float) -> float:
        rates, integrals = _chain(self.betas)
        wanted = math.log1p(noise_to_signal**2)
        piece = min(max(bisect.bisect_left(integrals, wanted) - 1, 0), len(self.betas) - 1)
        return piece / len(self.betas) + (wanted - integrals[piece]) / rates[piece]

    def _rate_and_integral(self, t: Time) -> tuple[Time, Time]:
        """beta(t) and int_0^t beta."""
        length = len(self.betas)
        if isinstance(t, Tensor):
            rates, integrals = _chain_tensors(self.betas, t.dtype, t.device)
            piece = _piece(t, length)
            return rates[piece], integrals[piece] + rates[piece] * (t - piece.to(t.dtype) / length)
        rates, integrals = _chain(self.betas)
        piece = min(max(math.ceil(t * length - _SNAP) - 1, 0), length - 1)
        return rates[piece], integrals[piece] + rates[piece] * (t - piece / length)

    def __repr__(self) -> str:
        return f"DiscreteVP({len(self.betas)} betas from {self.betas[0]:g} to {self.betas[-1]:g})"


_SNAP = 1e-4
"""Times this share of a piece beyond k / N belong to the piece below: k / N itself is rarely a floating-point number."""


def _piece(t: Tensor, length: int) -> Tensor:
    return ((t * length - _SNAP).ceil().long() - 1).clamp(0, length - 1)


@functools.lru_cache(maxsize=16)
def _chain(betas: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """beta(t) on each piece, and int beta up to where it begins (one more: the end)."""
    steps = [-math.log1p(-beta) for beta in betas]
    return tuple(step * len(betas) for step in steps), tuple(itertools.accumulate(steps, initial=0.0))


@functools.lru_cache(maxsize=16)
def _chain_tensors(betas: Sequence[float], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    rates, integrals = _chain(betas)
    return torch.tensor(rates, dtype=dtype, device=device), torch.tensor(integrals, dtype=dtype, device=device)


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-VP process (Song et al. 2021, section 3.4): the drift of VP with less noise, sigma = 1 - alpha^2."""

    def sigma(self, t: Time) -> Time:
        return -_expm1(-self.integrated_beta(t))

    def diffusion(self, t: Time) -> Time:
        return _sqrt(self.beta(t) * -_expm1(-2 * self.integrated_beta(t)))

    def time_of(self, noise_to_signal: float) -> float:
        return self._time_of_integral(2 * math.asinh(noise_to_signal / 2))


@dataclass(frozen=True)
class VE:
    """Variance-exploding process with geometric sigma(t) from sigma_min to sigma_max on [0, 1] (Song et al. 2021); it starts at sigma_min."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_max: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"VE needs 0 < sigma_min < sigma_max, got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}")

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Time) -> Time:
        return 0 * t + 1

    def sigma(self, t: Time) -> Time:
        return self.sigma_min * _exp(self._rate * t)

    def drift(self, t: Time) -> Time:
        return 0 * t

    def diffusion(self, t: Time) -> Time:
        return self.sigma(t) * math.sqrt(2 * self._rate)

    def time_of(self, noise_to_signal: float) -> float:
        return math.log(noise_to_signal / self.sigma_min) / self._rate


@dataclass(frozen=True)
class EDM:
    """alpha = 1, sigma(t) = t (Karras et al. 2022, arXiv 2206.00364): the time is the noise level."""

    sigma_max: float = 80.0

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
        return _sqrt(2 * t)

    def time_of(self, noise_to_signal: float) -> float:
        return noise_to_signal


SCHEDULES: dict[str, type] = {"LinearVP": LinearVP, "DiscreteVP": DiscreteVP, "SubVP": SubVP, "VE": VE, "EDM": EDM}


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
