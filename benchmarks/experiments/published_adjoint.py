"""DiffPure's gradient as its authors ran it, for comparison.

The published code calls `torchsde.sdeint_adjoint` on a real reverse time in float32, with diagonal noise, the network's
parameters in the adjoint state (those of its score_sde networks are not frozen, and no `adjoint_params` are given), and
no `adjoint_method`: torchsde then solves the adjoint by Milstein. The backward solve starts at the data's end and steps
by the full dt from there, so its times are not those of the forward solve. Its own dt is 1/1000, 1000 t_star steps;
other numbers of steps are the same configuration with another dt.
"""

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torchsde
from torch import Tensor, nn

from purify.noise import KeyedBrownian, Stage, standard_normal
from purify.purifiers import DiffPure, Purifier
from purify.score.model import ScoreModel
from purify.solvers.grids import time_grid


class PublishedAdjoint(Purifier):
    """The values of `DiffPure(score, t_star, steps, grid="diffpure", noising=noising)` for the same keys (up to
    rounding), with the published gradient.

    Args:
        score: the score model; a copy is used, whose parameters require gradients.
        t_star: time to diffuse to.
        steps: Euler steps on the way back.
        t_end: where to stop.
        noising: see `DiffPure`; published is "discrete".
    """

    def __init__(
        self,
        score: ScoreModel,
        t_star: float,
        steps: int,
        t_end: float = 1e-5,
        noising: Literal["continuous", "discrete"] = "continuous",
    ):
        super().__init__(copy.deepcopy(score).requires_grad_(True))
        self.noising = noising
        self.t_star, self.steps, self.t_end = t_star, steps, t_end

    def purify(self, x: Tensor, keys: Tensor) -> Tensor:
        """See `Purifier.purify`."""
        noise = standard_normal(keys, Stage.FORWARD, 0, tuple(x.shape[1:]), x.dtype)
        alpha, sigma = DiffPure(self.score, self.t_star, self.steps, noising=self.noising).marginal()
        start = alpha * x + sigma * noise
        brownian = _RealTimeBrownian(
            keys, x[0].numel(), x.dtype, time_grid(self.t_star, self.t_end, self.steps, "diffpure")
        )
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            states = torchsde.sdeint_adjoint(
                _RealTimeSDE(self.score, x.shape),
                start.flatten(1),
                torch.tensor([1 - self.t_star, 1 - self.t_end], dtype=torch.float32),
                bm=brownian,
                method="euler",
                dt=self.t_star / self.steps,
            )
        last: Tensor = states[-1]
        return last.reshape(x.shape)


class _RealTimeSDE(nn.Module):
    """dx/ds over s = 1 - t, for torchsde."""

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, score: ScoreModel, shape: torch.Size):
        super().__init__()
        self.score = score
        self.image = shape[1:]

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        t, x, schedule = float(1 - s), y.reshape(-1, *self.image), self.score.schedule
        drift = schedule.drift(t) * x + schedule.diffusion(t) ** 2 / schedule.sigma(t) * self.score.noise(x, t)
        return -drift.flatten(1)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(y, self.score.schedule.diffusion(float(1 - s)))


class _RealTimeBrownian:
    """A keyed Brownian motion over s, whose increments over the steps of `times` are those that the step clock
    gives.
    """

    levy_area_approximation = "none"

    def __init__(self, keys: Tensor, size: int, dtype: torch.dtype, times: Sequence[float] | Tensor):
        self.motion = KeyedBrownian(keys, size, dtype)
        self.shape, self.dtype, self.device = self.motion.shape, dtype, keys.device
        self.knots = 1 - np.array(times)

    def __call__(self, sa: Tensor, sb: Tensor, return_U: bool = False, return_A: bool = False) -> Tensor:
        """W(sb) - W(sa)."""
        assert not (return_U or return_A)
        clock = np.interp([float(sa), float(sb)], self.knots, np.arange(len(self.knots)))
        near = np.round(clock)
        start, end = np.where(np.abs(clock - near) < 1e-6, near, clock)
        total = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        for step in range(int(np.floor(start)), int(np.ceil(end))):
            length = self.knots[step + 1] - self.knots[step]
            total = total + length**0.5 * self.motion(max(start, step), min(end, step + 1))
        return total
