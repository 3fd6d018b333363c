"""DPM-Solver++ of two steps, and its SDE version (Lu et al. 2022, arXiv 2211.01095)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from purify.checks import check_not_negative
from purify.schedules.elementwise import log
from purify.solvers.base import Levels, StepRule, scaled
from purify.solvers.exponential import advance, level


@dataclass(frozen=True)
class DPMSolver(StepRule):
    """DPM-Solver++(2M), algorithm 2, or SDE-DPM-Solver++(2M): an exponential integrator in the denoised image, one
    evaluation a step.

    The denoised image x0 is extrapolated linearly in lambda = log(alpha / sigma) from the step before to the middle of
    this one: x0 + h / (2 h_before) (x0 - x0_before) with h the steps' widths in lambda.
    The first step has nothing to extrapolate from, and the last one (which may lead to no noise at all) does not
    extrapolate: both are of first order, which keeps the order of the whole. Order 2 for eta = 0 (deterministic), weak
    order 2 for eta > 0, in the step of log(alpha / sigma), so on grids such as "log_snr" and "karras". One normal a
    pixel and step for eta > 0.

    Args:
        order: 2, or 1 without memory: for eta = 0 DDIM, for eta = 1 DDPM's ancestral step with the "small" variance.
        eta: share of the noise on the way back, >= 0: 0 (published default) the probability-flow ODE, 1 the published
            SDE version. In between, noise as for `purify.solvers.sde.ReverseSDE`; others count eta^2, tau^2 there.

    Raises:
        ValueError: settings out of range.
    """

    order: Literal[1, 2] = 2
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {self.order}")
        check_not_negative(eta=self.eta)

    @property
    def remembers(self) -> int:
        """See `StepRule`: the denoised image of the step before."""
        return self.order - 1

    def step(self, levels: Levels, index: int, state: Tensor, keys: Tensor) -> Tensor:
        """See `StepRule.step`."""
        x_t, *before = state.chunk(1 + self.remembers, dim=1)
        x0 = used = levels.denoised(index, x_t)
        if before and 0 < index and not levels.is_last(index):
            h, h_before = (log(levels.ratio(i) / levels.ratio(i + 1)) for i in (index, index - 1))
            used = x0 + scaled(h / (2 * h_before), x0 - before[0])
        x_s = advance(x_t, used, level(levels, index), level(levels, index + 1), self.eta, keys, index)
        return torch.cat([x_s, x0], dim=1) if before else x_s
