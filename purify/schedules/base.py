"""What every noise schedule answers, and what follows from that for all of them."""

from typing import Protocol, TypeVar

import torch
from torch import Tensor

from purify.schedules.elementwise import Number, log, reciprocal, sqrt

Time = TypeVar("Time", float, Tensor, float | Tensor)
"""A float, or a tensor of times of any shape, for which the answer has the same kind and shape; see `Number`."""


class Schedule(Protocol):
    """What the rest of the package asks of a noise schedule."""

    @property
    def t_min(self) -> float:
        """The beginning of the process, where its noise is least."""

    @property
    def t_max(self) -> float:
        """The end of the process: times lie in [t_min, t_max]."""

    def alpha(self, t: Time) -> Time:
        """Factor of the data in the marginal."""

    def sigma(self, t: Time) -> Time:
        """Standard deviation of the noise in the marginal."""

    def drift(self, t: Time) -> Time:
        """f(t) of dx = f(t) x dt + g(t) dw, per unit of time."""

    def diffusion(self, t: Time) -> Time:
        """g(t) of dx = f(t) x dt + g(t) dw."""

    def time_of(self, noise_to_signal: Number) -> Number:
        """The t with sigma(t) / alpha(t) = `noise_to_signal`: the same amount of noise in another process."""


def noise_to_signal(schedule: Schedule, t: Time) -> Time:
    """sigma(t) / alpha(t), EDM's sigma: the standard deviation of the noise in x_t / alpha(t). `schedule.time_of` is
    its inverse.
    """
    return schedule.sigma(t) / schedule.alpha(t)


def snr(schedule: Schedule, t: Time) -> Time:
    """Signal-to-noise ratio alpha(t)^2 / sigma(t)^2 (Kingma et al. 2021, arXiv 2107.00630); infinite without noise."""
    return reciprocal(noise_to_signal(schedule, t)) ** 2


def log_snr(schedule: Schedule, t: Time) -> Time:
    """Natural logarithm of `snr`: twice DPM-Solver's lambda."""
    return -2 * log(noise_to_signal(schedule, t))


def transition(schedule: Schedule, s: Time, t: Time) -> tuple[Time, Time]:
    """(factor, std) of the forward process from s to t: x_t = factor x_s + std n in distribution, with n ~ N(0, I)
    independent of x_s.

    factor = alpha_t / alpha_s and std = alpha_t sqrt(r_t^2 - r_s^2) with r = sigma / alpha (Kingma et al. 2021, arXiv
    2107.00630, appendix A).

    Args:
        schedule: the process.
        s: the earlier time, a float or a tensor.
        t: the later time, likewise; the two broadcast.

    Raises:
        ValueError: `t` is less than `s` somewhere.
    """
    backward = t < s
    if backward.any() if isinstance(backward, Tensor) else backward:
        raise ValueError(f"transition from s={s} to t={t}: the forward process needs s <= t; exchange them")
    before, after, alpha = noise_to_signal(schedule, s), noise_to_signal(schedule, t), schedule.alpha(t)
    gained = (after - before) * (after + before)
    # rounding, where the times lie close together
    gained = gained.clamp_min(0) if isinstance(gained, Tensor) else max(gained, 0.0)
    return alpha / schedule.alpha(s), alpha * sqrt(gained)


def prior(schedule: Schedule) -> tuple[float, float]:
    """alpha and sigma at the end of the process. Sampling starts there from N(0, sigma^2 I), in place of the data's own
    x = alpha x_0 + sigma n.
    """
    return schedule.alpha(schedule.t_max), schedule.sigma(schedule.t_max)


def time_of_index(index: int | Tensor, length: int) -> float | Tensor:
    """The continuous time of DDPM's index k = 0, ..., length - 1 (Ho et al. 2020, arXiv 2006.11239): (k + 1) / length,
    the marginal after k + 1 steps.

    Args:
        index: an integer, or an integer tensor of any shape.
        length: steps of the chain.

    Returns:
        A float in (0, 1], or a float64 tensor of the shape of `index`.

    Raises:
        ValueError: an index that the chain does not have.
    """
    lowest, highest = _ends(index)
    if not 0 <= lowest <= highest < length:
        raise ValueError(f"index must lie in 0, ..., {length - 1} for a chain of {length} steps, got {index}")
    return ((index.double() if isinstance(index, Tensor) else index) + 1) / length


def index_of_time(t: float | Tensor, length: int) -> int | Tensor:
    """DDPM's index whose time is nearest to `t`, the inverse of `time_of_index`; all times before 1 / length have index
    0.

    Args:
        t: continuous time in [0, 1], a float or a tensor of any shape.
        length: steps of the chain.

    Returns:
        An integer in 0, ..., length - 1, or an int64 tensor of the shape of `t`.

    Raises:
        ValueError: a time outside [0, 1].
    """
    lowest, highest = _ends(t)
    if not 0 <= lowest <= highest <= 1:
        raise ValueError(f"t must lie in [0, 1] to have an index in a chain of {length} steps, got {t}")
    if isinstance(t, Tensor):
        return ((t.double() * length).round().to(torch.int64) - 1).clamp_min(0)
    return max(round(t * length) - 1, 0)


def _ends(values: float | Tensor) -> tuple[float, float]:
    """The least and the largest."""
    if isinstance(values, Tensor):
        return (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)
    return values, values
