"""The variance-preserving process through a chain of given betas."""

import bisect
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from purify.schedules.base import Time
from purify.schedules.elementwise import Number, exp, expm1, log1p, sqrt


@dataclass(frozen=True)
class DiscreteVP:
    """The variance-preserving process through a DDPM chain of any betas (Ho et al. 2020, arXiv 2006.11239).

    At t = k / N the marginal is exactly that of k steps of the chain. In between log alpha^2 is linear in t: beta(t) is
    constant on each ((k - 1) / N, k / N].

    Args:
        betas: the chain's, from the first step, each in (0, 1).
    """

    betas: tuple[float, ...]
    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))
        if not self.betas or not all(0 < beta < 1 for beta in self.betas):
            raise ValueError(
                f"DiscreteVP needs betas in (0, 1), got {len(self.betas)} from {min(self.betas, default=None)} to"
                f" {max(self.betas, default=None)}"
            )

    @classmethod
    def linear(cls, length: int = 1000, first: float = 1e-4, last: float = 0.02) -> "DiscreteVP":
        """Equally spaced betas: DDPM's. Other lengths than 1,000 keep the process with `first` and `last` scaled by
        1000 / length, as guided-diffusion does.
        """
        scale = 1000 / length
        return cls(tuple(torch.linspace(scale * first, scale * last, length, dtype=torch.float64).tolist()))

    @classmethod
    def scaled_linear(cls, length: int = 1000, first: float = 0.00085, last: float = 0.012) -> "DiscreteVP":
        """Square roots of betas equally spaced: latent diffusion's (Rombach et al. 2022, arXiv 2112.10752)."""
        return cls(tuple(torch.linspace(first**0.5, last**0.5, length, dtype=torch.float64).square().tolist()))

    @classmethod
    def cosine(cls, length: int = 1000, largest: float = 0.999) -> "DiscreteVP":
        """alpha(t)^2 = cos^2(pi/2 (t + 0.008) / 1.008), up to a factor (Nichol & Dhariwal 2021, arXiv 2102.09672, eq.
        17), betas at most `largest`.
        """

        def alpha_bar(k: int) -> float:
            return math.cos((k / length + 0.008) / 1.008 * math.pi / 2) ** 2

        return cls(tuple(min(1 - alpha_bar(k + 1) / alpha_bar(k), largest) for k in range(length)))

    def beta(self, t: Time) -> Time:
        return self._rate_and_integral(t)[0]

    def alpha(self, t: Time) -> Time:
        return exp(-0.5 * self._rate_and_integral(t)[1])

    def sigma(self, t: Time) -> Time:
        return sqrt(-expm1(-self._rate_and_integral(t)[1]))

    def drift(self, t: Time) -> Time:
        return -0.5 * self.beta(t)

    def diffusion(self, t: Time) -> Time:
        return sqrt(self.beta(t))

    def time_of(self, noise_to_signal: Number) -> Number:
        wanted, length = log1p(noise_to_signal**2), len(self.betas)
        if isinstance(wanted, Tensor):
            rates, integrals = _chain_tensors(self.betas, wanted.dtype, wanted.device)
            piece = (torch.searchsorted(integrals, wanted.detach().contiguous()) - 1).clamp(0, length - 1)
            return piece.to(wanted.dtype) / length + (wanted - integrals[piece]) / rates[piece]
        beta, begun = _chain(self.betas)
        k = min(max(bisect.bisect_left(begun, wanted) - 1, 0), length - 1)
        return k / length + (wanted - begun[k]) / beta[k]

    def _rate_and_integral(self, t: Time) -> tuple[Time, Time]:
        """beta(t) and int_0^t beta."""
        length = len(self.betas)
        if isinstance(t, Tensor):
            rates, integrals = _chain_tensors(self.betas, t.dtype, t.device)
            piece = _piece(t, length)
            return rates[piece], integrals[piece] + rates[piece] * (t - piece.to(t.dtype) / length)
        beta, begun = _chain(self.betas)
        k = min(max(math.ceil(t * length - _SNAP) - 1, 0), length - 1)
        return beta[k], begun[k] + beta[k] * (t - k / length)

    def __repr__(self) -> str:
        return f"DiscreteVP({len(self.betas)} betas from {self.betas[0]:g} to {self.betas[-1]:g})"


_SNAP = 1e-4
"""Times this share of a piece beyond k / N belong to the piece below: k / N itself is rarely a floating-point number.
"""


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
