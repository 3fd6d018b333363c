"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) on the expected loss of a random model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.expectation import Expectation
from attacks.inputs import also_called, check_choice
from attacks.losses import LOSSES, margin
from attacks.randomness import OfPGDRun, derive, run_keys
from attacks.restarts import confirmed, in_turn, where
from attacks.task import Task
from attacks.threats import Threat, random_point


@also_called(iterations="steps")
@dataclass(frozen=True)
class PGD(Attack):
    """Signed (Linf) or normalised (L2) gradient steps on the mean loss over `eot` fresh draws each.

    Returns the last iterate; with several restarts, for each image the one with the largest mean margin over draws of
    their own.

    Args:
        threat: `Linf` or `L2`.
        steps: gradient steps per restart. All other attacks call them `iterations`, and so may a call of `PGD`;
            `dataclasses.replace` takes `steps`.
        eot: draws of the model per gradient.
        step_size: in the units of epsilon; default 2.5 epsilon / steps.
        loss: "ce", "margin" or "dlr".
        restarts: independent runs.
        random_start: begin at a random point of the ball instead of at the image.
        momentum: share of the earlier directions that is kept, in [0, 1) (MI-FGSM, Dong et al. 2018, arXiv 1710.06081,
            with mu = momentum).
        schedule: "constant" steps, or from `step_size` down to 0 along a "linear" or "cosine" curve.
        stop_draws: an image leaves the attack, as it is, once all `eot` draws of a gradient and then so many fresh
            draws reach the goal; 0: never.
        batch_size: rows (images times draws) of one call of the model, halved where memory runs out.
    """

    lengths: ClassVar[tuple[str, ...]] = ("steps",)

    threat: Threat
    steps: int = 20
    eot: int = 1
    step_size: float | None = None
    loss: str = "ce"
    restarts: int = 1
    random_start: bool = True
    momentum: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    stop_draws: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be positive, got {self.step_size}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        check_choice(self, "schedule", _SCHEDULES)

    @property
    def iterations(self) -> int:
        """As `steps`, the name of it in all other attacks."""
        return self.steps

    def run(self, task: Task) -> Tensor:
        """As of `Attack`; `start` is where the first restart begins."""
        expectation = task.expectation(self.eot, self.batch_size)
        largest = task.x.new_full((len(task.x),), -torch.inf)  # mean margins of what was found

        def run(restart: int, standing: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor]:
            keys = run_keys(task.keys, restart)
            begin = task.start if restart == 0 and task.start is not None else self._begin(task.x, keys)
            report = task.counted(restart, self.restarts, self.steps)
            found, broken = self._restart(task, expectation, begin, keys, standing, report)
            if self.restarts == 1:
                return found, broken
            select = derive(keys[standing], OfPGDRun.SELECT)
            reached = expectation.loss(found, select, margin, standing).nan_to_num(-torch.inf)
            better = reached > largest[standing]
            largest[standing] = torch.where(better, reached, largest[standing])
            # the first point is better than none, also where its margin is NaN
            return where(broken | better | (restart == 0), found, earlier), broken

        return in_turn(run, self.restarts, task.x)

    def _begin(self, x: Tensor, keys: Tensor) -> Tensor:
        return random_point(self.threat, x, derive(keys, OfPGDRun.START)) if self.random_start else x

    def _restart(
        self,
        task: Task,
        expectation: Expectation,
        begin: Tensor,
        keys: Tensor,
        standing: Tensor,
        report: Callable[[int], None],
    ) -> tuple[Tensor, Tensor]:
        """The last iterates (n, c, h, w) of the images at `standing`, and (n,) bool: which of these left as broken."""
        size = 2.5 * self.threat.epsilon / self.steps if self.step_size is None else self.step_size
        x, x_adv, keys = task.x[standing], begin[standing], keys[standing]
        velocity, broken = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for step in range(self.steps):
            active = (~broken).nonzero().squeeze(1)
            if not len(active):
                break
            rows, of_step = standing[active], derive(keys[active], OfPGDRun.STEP, step)
            gradient, _, success = expectation.gradient(x_adv[active], of_step, LOSSES[self.loss], rows)
            if self.stop_draws:
                stop = derive(keys[active], OfPGDRun.STOP, step)
                sure = confirmed(expectation, x_adv[active], success, stop, rows, self.stop_draws)
                broken[active[sure]] = True
                active, gradient, success = active[~sure], gradient[~sure], success[~sure]
            task.gradients.see(gradient, standing[active], success)
            direction = self.threat.direction(gradient.nan_to_num(0.0, 0.0, 0.0))
            if self.momentum:
                size_of = gradient.abs().mean((1, 2, 3), keepdim=True)
                gradient = gradient / size_of.clamp_min(torch.finfo(gradient.dtype).tiny)
                velocity[active] = self.momentum * velocity[active] + gradient.nan_to_num(0.0, 0.0, 0.0)
                direction = self.threat.direction(velocity[active])
            share = _SCHEDULES[self.schedule](step / self.steps)
            x_adv[active] = self.threat.project(x_adv[active] + size * share * direction, x[active])
            report(step + 1)
        return x_adv, broken


_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1 - share,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
}
"""Factor of the step size after a share of the steps."""
