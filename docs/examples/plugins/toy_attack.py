"""An attack of one's own: a frozen dataclass of settings, which are the keys of its section, with the method `run`."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attacks import Attack, Threat
from attacks.losses import cross_entropy
from attacks.randomness import mix
from attacks.task import Task


@dataclass(frozen=True)
class Corner(Attack):
    """Steps to the corners of the ball along the sign of a gradient averaged over draws.

    Args:
        threat: where to stay.
        iterations: gradients.
        eot: draws of the model per gradient.
        share: of epsilon that a step is long, in (0, 1].
        batch_size: rows (images times draws) of one call of the model.
    """

    takes_targets: ClassVar[bool] = False  # a call with targets is refused, and so is `target:` in a configuration
    takes_start: ClassVar[bool] = False

    threat: Threat
    iterations: int = 2
    eot: int = 1
    share: float = 1.0
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()  # checks iterations, eot and batch_size
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")

    def run(self, task: Task) -> Tensor:
        """As of `Attack`: the arguments of the call are checked, and every gradient is shown to `task.gradients`."""
        expectation, x_adv = task.expectation(self.eot, self.batch_size), task.x
        for step in range(self.iterations):
            gradient, _, success = expectation.gradient(x_adv, mix(task.keys, step), cross_entropy)
            task.gradients.see(gradient, task.everything, success)
            change = self.share * self.threat.epsilon * gradient.sign()
            x_adv = self.threat.project(x_adv + change, task.x)
            task.progress(step + 1, self.iterations)
        return x_adv
