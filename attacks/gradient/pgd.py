"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) on the expected loss of a random model."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.attack import Attack
from attacks.expectation import Expectation
from attacks.inputs import check_inputs, check_integers_from_zero, check_positive_integers, check_start, check_targets
from attacks.losses import LOSSES, margin
from attacks.randomness import default_keys, mix, uniform
from attacks.threats import Threat

Progress = Callable[[int, int], None]
"""progress(done, total), called after every gradient."""

_START, _STEP, _SELECT, _STOP = range(4)  # what an attack's draws are for


@dataclass(frozen=True)
class PGD(Attack):
    """Signed (Linf) or normalised (L2) gradient steps on the mean loss over `eot` fresh draws each.

    Returns the last iterate; with several restarts, for each image the one with the largest mean margin over draws of
    their own.

    Args:
        threat: `Linf` or `L2`.
        steps: gradient steps per restart.
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
        check_positive_integers(self, "steps", "eot", "restarts", "batch_size")
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is not one of {', '.join(LOSSES)}")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be positive, got {self.step_size}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if self.schedule not in _SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is not one of {', '.join(_SCHEDULES)}")
        check_integers_from_zero(self, "stop_draws")

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        keys: Tensor | None = None,
        progress: Progress | None = None,
        *,
        targets: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images.

        Args:
            model: images in [0, 1] -> logits; called as `model(x, keys=...)` where its `forward` takes keys, else as
                `model(x)`.
            x: (b, c, h, w), floating point, in [0, 1].
            y: (b,) int64 labels.
            keys: (b,) int64: the attack's randomness for each image; default 0 .. b - 1.
            progress: called after every gradient.
            targets: (b,) int64, other classes than the labels: the attack seeks these predictions instead of any wrong
                one.
            start: (b, c, h, w), where the first restart begins, allowed by the threat model: an earlier attack's
                result, say.

        Returns:
            (b, c, h, w), detached, allowed by the threat model.

        Raises:
            ValueError: images out of range or not finite, labels, targets or a start that do not fit.
        """
        check_inputs(x, y, keys)
        check_targets(targets, y)
        check_start(start, x, self.threat.distance, self.threat.epsilon)
        keys = default_keys(len(x), x.device) if keys is None else keys.to(x.device)
        expectation = Expectation(model, y, self.eot, self.batch_size, targets)
        best, best_margin, standing = x, None, torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            restart_keys = mix(keys, restart)
            begin = start if restart == 0 and start is not None else self._begin(x, restart_keys)
            x_adv, broken = self._run(expectation, x, begin, restart_keys, standing, restart, progress)
            if self.restarts == 1:
                return x_adv
            reached = expectation.loss(
                x_adv[standing], mix(restart_keys[standing], _SELECT), margin, standing
            ).nan_to_num(-torch.inf)
            if best_margin is None:
                best, best_margin = x_adv, reached
            else:
                better = standing[reached > best_margin[standing]]
                best, best_margin = best.clone(), best_margin.clone()
                best[better], best_margin[better] = x_adv[better], reached[reached > best_margin[standing]]
            best = torch.where(broken[:, None, None, None], x_adv, best)
            standing = standing[~broken[standing]]
            if not len(standing):
                break
        return best

    def _begin(self, x: Tensor, keys: Tensor) -> Tensor:
        if not self.random_start:
            return x.detach()
        return self.threat.project(
            x + self.threat.random_start(uniform(mix(keys, _START), tuple(x.shape[1:]), x.dtype)), x
        )

    def _run(
        self,
        expectation: Expectation,
        x: Tensor,
        begin: Tensor,
        keys: Tensor,
        standing: Tensor,
        restart: int,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """All images, those at `standing` attacked, and (b,) bool: which of these left as broken."""
        size = 2.5 * self.threat.epsilon / self.steps if self.step_size is None else self.step_size
        x_adv, velocity, broken = (
            begin.clone(),
            torch.zeros_like(x),
            torch.zeros(len(x), dtype=torch.bool, device=x.device),
        )
        gradients = BadGradients(len(x), x.device)
        for step in range(self.steps):
            rows = standing[~broken[standing]]
            if not len(rows):
                break
            gradient, _, success = expectation.gradient(
                x_adv[rows], mix(keys[rows], _STEP, step), LOSSES[self.loss], rows
            )
            if self.stop_draws:
                sure = success == 1
                confirmed = (
                    expectation.success(
                        x_adv[rows[sure]], mix(keys[rows[sure]], _STOP, step), rows[sure], self.stop_draws
                    )
                    == 1
                )
                broken[rows[sure][confirmed]] = True
                sure[sure.clone()] = confirmed
                rows, gradient, success = rows[~sure], gradient[~sure], success[~sure]
            gradients.see(gradient, rows, success)
            direction = self.threat.direction(gradient.nan_to_num(0.0, 0.0, 0.0))
            if self.momentum:
                gradient = gradient / gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(
                    torch.finfo(gradient.dtype).tiny
                )
                velocity[rows] = self.momentum * velocity[rows] + gradient.nan_to_num(0.0, 0.0, 0.0)
                direction = self.threat.direction(velocity[rows])
            x_adv[rows] = self.threat.project(
                x_adv[rows] + size * _SCHEDULES[self.schedule](step / self.steps) * direction, x[rows]
            )
            if progress is not None:
                progress(restart * self.steps + step + 1, self.restarts * self.steps)
        gradients.warn(self.steps)
        return x_adv, broken


_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1 - share,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
}
"""Factor of the step size after a share of the steps."""


class BadGradients:
    """Counts gradients that vanish or break: either makes any defence look robust, so it must not pass in silence."""

    def __init__(self, images: int, device: torch.device):
        self.vanished = torch.zeros(images, dtype=torch.int64, device=device)
        self.broken = torch.zeros_like(self.vanished)

    def see(self, gradient: Tensor, rows: Tensor, success: Tensor) -> None:
        """Counts the gradients (n, c, h, w) of the images at positions `rows`, vanished ones where not all draws reach
        the goal: `success` (n,) is their share.

        Where all do, "dlr" is constant at its maximum.
        """
        self.vanished[rows] += (gradient == 0).flatten(1).all(1) & (success < 1)
        self.broken[rows] += (~gradient.isfinite()).flatten(1).any(1)

    def warn(self, steps: int) -> None:
        """Warns (UserWarning) of what was counted in so many steps."""
        for what, counts in (("exactly zero", self.vanished), ("NaN or infinite", self.broken)):
            images = int((counts > 0).sum())
            if images:
                message = (
                    f"the attack's gradient was {what} for {images} of {len(counts)} images, in up to"
                    f" {int(counts.max())} of {steps} steps"
                )
                warnings.warn(f"{message}: it cannot be trusted there", stacklevel=4)
