"""An attack of one's own: a class of settings, which are the keys of its section, called to attack."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks import Threat
from attacks.expectation import call
from attacks.randomness import default_keys, mix


@dataclass(frozen=True)
class Corner:
    """Steps to the corners of the ball along the sign of a gradient averaged over draws.

    Args:
        threat: where to stay.
        iterations: gradients.
        eot: draws of the model per gradient.
        share: of epsilon that a step is long, in (0, 1].
    """

    takes_targets: ClassVar[bool] = False

    threat: Threat
    iterations: int = 2
    eot: int = 1
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        keys: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Adversarial images for x (b, c, h, w) in [0, 1] and labels y (b,), a function of keys (b,)."""
        keys = default_keys(len(x), x.device) if keys is None else keys
        x_adv = x
        for step in range(self.iterations):
            gradient = torch.zeros_like(x)
            for draw in range(self.eot):
                inputs = x_adv.detach().requires_grad_()
                losses = nn.functional.cross_entropy(call(model, inputs, mix(keys, step, draw)), y, reduction="sum")
                gradient += torch.autograd.grad(losses, inputs)[0]
            x_adv = self.threat.project(x_adv + self.share * self.threat.epsilon * gradient.sign(), x)
            if progress is not None:
                progress(step + 1, self.iterations)
        return x_adv.detach()
