"""The times that a solver walks, from t_star down to t_end.

Times are those of the schedule in use. A grid of one batch is a tuple of floats, or, where every image has a t_star of
its own, a float64 tensor (steps + 1, b): `times[i]` is what score models take as a time in both cases.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from purify.schedules import Schedule, noise_to_signal

Grid = Literal["uniform", "quadratic", "karras", "log_snr", "chain", "diffpure"]

Times = Sequence[float] | Tensor

KARRAS_RHO = 7
CHAIN_LENGTH = 1000


def time_grid(
    t_star: float | Tensor, t_end: float, steps: int, grid: Grid = "uniform", schedule: Schedule | None = None
) -> Times:
    """steps + 1 times from `t_star` down to `t_end`.

    - "uniform": equal steps.
    - "quadratic": t_i = t_end + (t_star - t_end) (1 - i/steps)^2, steps that shrink towards the data: with few of them
      this leaves much less of the last ones' noise in the result.
    - "karras": equal steps of (sigma/alpha)^(1/7) (Karras et al. 2022, arXiv 2206.00364, eq. 5); "log_snr": equal steps
      of log(sigma/alpha). Both need noise at t_end, and the schedule.
    - "chain": multiples of 1/1000 as equally spaced as integers can be, down to 0: a sub-sequence of DDPM's chain.
    - "diffpure": DiffPure's own times, for parity with its numbers: steps of t_star / steps, the last one shortened by
      t_end, added up in float32 in the reverse time s = 1 - t.

    Args:
        t_star: where to start, or (b,) float64: where each image starts.
        t_end: where to end, less than every t_star.
        steps: at least 1.
        grid: a name.
        schedule: whose times they are, for "karras" and "log_snr".

    Raises:
        ValueError: a grid that has no such times.
    """
    if isinstance(t_star, Tensor):
        if grid in ("chain", "diffpure"):
            raise ValueError(
                f"grid={grid!r} has the same times for all images; with a t_star for each image use another grid"
            )
        return torch.stack(
            [
                torch.as_tensor(t, dtype=torch.float64, device=t_star.device).expand(len(t_star))
                for t in _walk(t_star, t_end, steps, grid, schedule)
            ]
        )
    if grid == "diffpure":
        return _diffpure_grid(t_star, t_end, steps)
    if grid == "chain":
        return _chain_grid(t_star, t_end, steps)
    return tuple(map(float, _walk(t_star, t_end, steps, grid, schedule)))


def _walk(
    t_star: float | Tensor, t_end: float, steps: int, grid: Grid, schedule: Schedule | None
) -> list[float | Tensor]:
    """The grids that are equal steps of some function of the time."""
    if grid in ("uniform", "quadratic"):
        power = {"uniform": 1, "quadratic": 2}[grid]
        inner = [t_end + (t_star - t_end) * (1 - i / steps) ** power for i in range(1, steps)]
        return [t_star, *inner, t_end]
    assert schedule is not None
    first, last = noise_to_signal(schedule, t_star), noise_to_signal(schedule, t_end)
    if not last > 0:
        raise ValueError(f"grid={grid!r} needs noise at its end, t_end={t_end} has none; give a larger t_end")
    if grid == "karras":
        root = 1 / KARRAS_RHO
        ratios = [(first**root + i / steps * (last**root - first**root)) ** KARRAS_RHO for i in range(1, steps)]
    else:
        ratios = [first * (last / first) ** (i / steps) for i in range(1, steps)]
    return [t_star, *map(schedule.time_of, ratios), t_end]


def _chain_grid(t_star: float, t_end: float, steps: int) -> tuple[float, ...]:
    first = round(t_star * CHAIN_LENGTH)
    if abs(first - t_star * CHAIN_LENGTH) > 1e-6 or t_end != 0 or steps > first:
        raise ValueError(
            f'grid="chain" takes up to t_star * {CHAIN_LENGTH} steps over multiples of 1/{CHAIN_LENGTH} down to'
            f" t_end=0, got t_star={t_star}, t_end={t_end}, steps={steps}"
        )
    return tuple(round(first * (1 - i / steps)) / CHAIN_LENGTH for i in range(steps + 1))


def _diffpure_grid(t_star: float, t_end: float, steps: int) -> tuple[float, ...]:
    one, s, end, ds = (np.float32(value) for value in (1, 1 - t_star, 1 - t_end, t_star / steps))
    times = [float(one - s)]
    for _ in range(steps - 1):
        s = s + ds
        times.append(float(one - s))
    times.append(float(one - end))
    if any(later >= earlier for earlier, later in itertools.pairwise(times)):
        raise ValueError(
            f'grid="diffpure" cannot take steps={steps} from t_star={t_star} to t_end={t_end}: in float32 the last ones'
            " would overlap"
        )
    return tuple(times)


def per_image(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A number for the batch as it is, (b,) numbers in the dtype of the images `like` and ready to be multiplied with
    them.
    """
    return value.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1)) if isinstance(value, Tensor) else value
