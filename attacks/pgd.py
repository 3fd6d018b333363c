"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) on the expected loss of a random model."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.checks import check_inputs
from attacks.eot import eot_gradient, eot_loss
from attacks.losses import LOSSES, margin
from attacks.randomness import default_keys, mix, uniform
from attacks.threat import Threat

Progress = Callable[[int, int], None]
"""progress(done, total), called after every gradient."""

_START, _STEP, _SELECT = range(3)  # what an attack's draws are for


@dataclass(frozen=True)
class PGD:
    """Signed (Linf) or normalised (L2) gradient steps on the mean loss over `eot` fresh draws each.

    Returns the last iterate; with several restarts, for each image the one with the largest mean margin over draws of their own.

    Args:
        threat: `Linf` or `L2`.
        steps: gradient steps per restart.
        eot: draws of the model per gradient.
        step_size: in the units of epsilon; default 2.5 epsilon / steps.
        loss: "ce" or "margin".
        restarts: independent runs.
        random_start: begin at a random point of the ball instead of at the image.
        batch_size: rows (images times draws) of one call of the model.
    """

    threat: Threat
    steps: int = 20
    eot: int = 1
    step_size: float | None = None
    loss: str = "ce"
    restarts: int = 1
    random_start: bool = True
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name in ("steps", "eot", "restarts", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is not one of {', '.join(LOSSES)}")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be positive, got {self.step_size}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor | None = None, progress: Progress | None = None) -> Tensor:
        """Adversarial images.

        Args:
            model: images in [0, 1] -> logits; called as `model(x, keys=...)` where its `forward` takes keys, else as `model(x)`.
            x: (b, c, h, w), floating point, in [0, 1].
            y: (b,) int64 labels.
            keys: (b,) int64: the attack's randomness for each image; default 0 .. b - 1.
            progress: called after every gradient.

        Returns:
            (b, c, h, w), detached, allowed by the threat model.

        Raises:
            ValueError: images out of range or not finite, labels that do not fit.
        """
        check_inputs(x, y, keys)
        keys = default_keys(len(x), x.device) if keys is None else keys.to(x.device)
        best, best_margin = x, None
        for restart in range(self.restarts):
            restart_keys = mix(keys, restart)
            x_adv = self._run(model, x, y, restart_keys, restart, progress)
            if self.restarts == 1:
                return x_adv
            reached = eot_loss(model, x_adv, y, mix(restart_keys, _SELECT), margin, self.eot, self.batch_size)
            better = torch.ones_like(y, dtype=torch.bool) if best_margin is None else reached > best_margin
            best = torch.where(better[:, None, None, None], x_adv, best)
            best_margin = reached if best_margin is None else torch.where(better, reached, best_margin)
        return best

    def _run(self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor, restart: int, progress: Progress | None) -> Tensor:
        size = 2.5 * self.threat.epsilon / self.steps if self.step_size is None else self.step_size
        x_adv = x.detach()
        if self.random_start:
            x_adv = self.threat.project(x + self.threat.random_start(uniform(mix(keys, _START), tuple(x.shape[1:]), x.dtype)), x)
        vanished = broken = torch.zeros_like(y)
        for step in range(self.steps):
            gradient, _ = eot_gradient(model, x_adv, y, mix(keys, _STEP, step), LOSSES[self.loss], self.eot, self.batch_size)
            vanished = vanished + (gradient == 0).flatten(1).all(1)
            broken = broken + (~gradient.isfinite()).flatten(1).any(1)
            x_adv = self.threat.project(x_adv + size * self.threat.direction(gradient.nan_to_num(0.0, 0.0, 0.0)), x)
            if progress is not None:
                progress(restart * self.steps + step + 1, self.restarts * self.steps)
        _warn_of_bad_gradients("exactly zero", vanished, self.steps)
        _warn_of_bad_gradients("NaN or infinite", broken, self.steps)
        return x_adv


def _warn_of_bad_gradients(what: str, counts: Tensor, steps: int) -> None:
    """A gradient that vanishes or breaks makes any defence look robust, so it must not pass in silence."""
    images = int((counts > 0).sum())
    if images:
        message = f"the attack's gradient was {what} for {images} of {len(counts)} images, in up to {int(counts.max())} of {steps} steps"
        warnings.warn(f"{message}: it cannot be trusted there", stacklevel=4)
