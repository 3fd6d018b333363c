"""A process given by two functions of time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from purify.schedules.base import Time
from purify.schedules.elementwise import Number

Function = Callable[[Tensor], Tensor]

_HALVINGS = 80  # of [t_min, t_max], for times near 0 to have all their digits
_CHECKED = 65


@dataclass(frozen=True)
class Functions:
    """alpha = s(t), sigma = s(t) sigma_rel(t): EDM's s and sigma (Karras et al. 2022, arXiv 2206.00364, eq. 3 and
    appendix B).

    Then f = s' / s and g = s sqrt(2 sigma_rel sigma_rel'), by automatic differentiation in float64. Such a schedule
    cannot be stored in a file.

    Args:
        s: torch operations on a float64 tensor of times of any shape, elementwise; above 0.
        sigma_rel: likewise; at least 0 and increasing.
        t_max: the end of the process.
        t_min: its beginning. The drift and the diffusion exist where the functions' derivatives are finite: a
            `sigma_rel` that grows like sqrt(t) has none at 0 itself.

    Raises:
        ValueError: functions or times that do not make a process; looked at on a grid of times.
    """

    s: Function
    sigma_rel: Function
    t_max: float = 1.0
    t_min: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.t_min < self.t_max < math.inf:
            raise ValueError(f"Functions needs 0 <= t_min < t_max, got t_min={self.t_min}, t_max={self.t_max}")
        times = torch.linspace(self.t_min, self.t_max, _CHECKED, dtype=torch.float64)
        s, ratio = (self._values(name, times) for name in ("s", "sigma_rel"))
        if not (s > 0).all():
            raise ValueError(f"Functions needs s above 0 on [{self.t_min}, {self.t_max}], got {float(s.min())}")
        if not ratio[0] >= 0 or not (ratio.diff() > 0).all():
            raise ValueError(
                f"Functions needs sigma_rel increasing from at least 0 on [{self.t_min}, {self.t_max}], which it is not"
            )

    def _values(self, name: str, times: Tensor) -> Tensor:
        values = getattr(self, name)(times)
        if not isinstance(values, Tensor) or values.shape != times.shape or values.dtype != times.dtype:
            got = (
                f"{values.dtype} of shape {tuple(values.shape)}"
                if isinstance(values, Tensor)
                else f"{type(values).__name__}"
            )
            raise ValueError(
                f"Functions needs {name} to map float64 times of shape {tuple(times.shape)} to values of their type and"
                f" shape, got {got}"
            )
        return values

    def alpha(self, t: Time) -> Time:
        return _applied(self.s, t)

    def sigma(self, t: Time) -> Time:
        return _applied(lambda times: self.s(times) * self.sigma_rel(times), t)

    def drift(self, t: Time) -> Time:
        def f(times: Tensor) -> Tensor:
            s, rate = _with_rate(self.s, times)
            return rate / s

        return _applied(f, t)

    def diffusion(self, t: Time) -> Time:
        def g(times: Tensor) -> Tensor:
            ratio, rate = _with_rate(self.sigma_rel, times)
            return self.s(times) * (2 * ratio * rate).sqrt()

        return _applied(g, t)

    def time_of(self, noise_to_signal: Number) -> Number:
        """By bisection. t_min for less noise than the process begins with, infinity for more than it ends with."""
        return _applied(self._bisected, noise_to_signal)

    def __repr__(self) -> str:
        s, sigma_rel = (getattr(function, "__name__", repr(function)) for function in (self.s, self.sigma_rel))
        return f"Functions({s}, {sigma_rel}, t_max={self.t_max}, t_min={self.t_min})"

    def _bisected(self, ratio: Tensor) -> Tensor:
        low, high = torch.full_like(ratio, self.t_min), torch.full_like(ratio, self.t_max)
        ends = self.sigma_rel(torch.stack([low, high]))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            beyond = self.sigma_rel(middle) < ratio
            low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
        return high.masked_fill(ratio > ends[1], math.inf).masked_fill(ratio <= ends[0], self.t_min)


def _applied(function: Function, t: Number) -> Number:
    """`function` of a float or a tensor, computed in float64."""
    if isinstance(t, Tensor):
        return function(t.double()).to(t.dtype)
    return float(function(torch.tensor(float(t), dtype=torch.float64)))


def _with_rate(function: Function, times: Tensor) -> tuple[Tensor, Tensor]:
    """`function` and its derivative, elementwise. By `torch.func`, so that it works inside its transforms and without
    gradient mode too.
    """
    values, pull_back, *_ = torch.func.vjp(function, times)
    return values, pull_back(torch.ones_like(values))[0]
