"""Training on tensors: weight averaging, and a loop that resumes exactly. What is minimised is in `purify.objectives`.

Nothing here knows files or data sets. All randomness of step i (which images, which noise) is a function of (seed, i),
so a run that was stopped and resumed takes the same steps as one that was not.
"""

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from purify.training.objectives import Loss


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. `precision` is the autocast type of the forward pass; weights, optimiser and averages stay
    float32.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "gradient_clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")


class Trainer:
    """AdamW with warm-up and cosine decay, an exponential moving average of the weights, and a state that resumes
    exactly.

    Args:
        model: trained in place, on the device it is on; channels-last memory is up to the caller.
        loss: see `purify.training.objectives.Loss`.
        images: (n, c, h, w) uint8, on the model's device.
        labels: (n,) int64, on the model's device.
        settings: see `TrainingSettings`.
    """

    def __init__(self, model: nn.Module, loss: Loss, images: Tensor, labels: Tensor, settings: TrainingSettings):
        if len(images) < settings.batch_size:
            raise ValueError(f"batch_size={settings.batch_size} is larger than the data set of {len(images)} images")
        self.model = model
        self.loss = loss
        self.images = images
        self.labels = labels
        self.settings = settings
        self.step = 0
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._order: tuple[int, Tensor] | None = None

    def learning_rate(self, step: int) -> float:
        s = self.settings
        warm = min(1.0, (step + 1) / s.warmup_steps) if s.warmup_steps else 1.0
        return s.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / s.steps))

    def run(self, stop: Callable[[int, Tensor], bool] | None = None) -> None:
        """Trains until `settings.steps`, or until `stop(step, loss)`, asked after every step, is true. `loss` stays on
        the device.
        """
        self.model.train()
        while self.step < self.settings.steps:
            loss = self._train_step()
            self.step += 1
            if stop is not None and stop(self.step, loss):
                return

    def _train_step(self) -> Tensor:
        s = self.settings
        generator = torch.Generator().manual_seed(_mix(s.seed, self.step))
        rows = self._batch_rows().to(self.images.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        device = self.images.device.type
        lower = torch.autocast(device, torch.bfloat16) if s.precision == "bfloat16" else contextlib.nullcontext()
        with lower:
            loss = self.loss(self.model, self.images[rows], self.labels[rows], generator)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), s.gradient_clip)
        self.optimizer.step()
        self._update_average()
        return loss.detach()

    def _batch_rows(self) -> Tensor:
        """Rows of this step's batch: epochs of a fresh permutation each; the incomplete last batch of an epoch is
        skipped.
        """
        per_epoch = len(self.images) // self.settings.batch_size
        epoch, batch = divmod(self.step, per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_mix(self.settings.seed + 1, epoch))
            self._order = (epoch, torch.randperm(len(self.images), generator=generator))
        start = batch * self.settings.batch_size
        return self._order[1][start : start + self.settings.batch_size]

    @torch.no_grad()
    def _update_average(self) -> None:
        # short memory at first, as TensorFlow's average has
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        averaged, current = ([p.detach() for p in model.parameters()] for model in (self.average, self.model))
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for ours, theirs in zip(self.average.buffers(), self.model.buffers(), strict=True):
            ours.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on; tensors and plain numbers only."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])


def _mix(seed: int, index: int) -> int:
    """Distinct generator seeds for (seed, index): a step of SplitMix64's output function."""
    z = (seed * 0x9E3779B97F4A7C15 + index + 0x632BE59BD9B4E019) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return z ^ (z >> 31)
