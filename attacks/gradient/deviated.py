"""DiffAttack (Kang, Song & Li, NeurIPS 2023, arXiv 2311.16124): losses on the states that a purifier passes through."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.attack import Attack
from attacks.expectation import Expectation, by_draw, is_random
from attacks.gradient.ascent import Climb
from attacks.inputs import also_called, check_from_zero
from attacks.losses import LOSSES, Loss
from attacks.protocols import OffersTrajectory, look_inside
from attacks.randomness import draw_keys
from attacks.task import Task
from attacks.threats import Threat


@also_called(steps="iterations")
@dataclass(frozen=True)
class DeviatedReconstruction(Attack):
    """APGD on the classification loss plus `weight` times the deviated reconstruction (eq. 8 and 11), plus `estimates`
    times the per-step loss.

    The deviated reconstruction is the mean over points of the way and over draws of d(x_t, x'_t): x_t is the attacked
    image with the forward process's noise at time t, x'_t the purifier's state there, of the same draw, so that without
    a purifier's error they differ by what it removes. The paper leaves d open; here it is the mean square over pixels,
    on the scale of [0, 1]. It takes the mean over uniformly spaced times, its alpha(t) = 1/(number of times); so does
    this, without the first point, where the two are equal.

    The per-step loss is the mean over points of the classification loss at the logits of the clean image that the state
    stands for, E[x_0 | x'_t]; the paper names such losses but holds that they need classifiers of noisy images.

    Published: cross-entropy in a first round and "dlr" in a second one, 100 iterations, 20 draws, weight 1, APGD's
    momentum 0.75 and first step 2 epsilon, no image left alone once it is misclassified. The step size and the best
    point follow the sum of the losses, as published, but for random models by comparisons that luck does not decide,
    see `APGD`. Among the results of a run the mean margin, which is what counts, decides.

    Args:
        threat: `Linf` or `L2`.
        iterations: gradients per run.
        eot: draws of the model per gradient and per comparison.
        loss: "ce", "margin" or "dlr".
        restarts: independent runs.
        weight: of the deviated reconstruction, the paper's lambda; from 0.
        points: of the way that the losses look at, from 2, both ends included.
        estimates: weight of the per-step loss, from 0; other than 0 it costs one more evaluation of the purifier's
            network a point.
        stop_draws: an image leaves the attack, as it is, once all `eot` draws of a gradient and then so many fresh
            draws reach the goal; 0: never.
        batch_size: rows (images times draws) of one call of the model, halved where memory runs out.
    """

    threat: Threat
    iterations: int = 100
    eot: int = 20
    loss: str = "ce"
    restarts: int = 1
    weight: float = 1.0
    points: int = 4
    estimates: float = 0.0
    stop_draws: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.points, int) or self.points < 2:
            raise ValueError(f"points must be an integer from 2, got {self.points!r}")
        check_from_zero(self, "weight", "estimates")

    @property
    def needs(self) -> type:
        """As of `Attack`."""
        return OffersTrajectory

    def run(self, task: Task) -> Tensor:
        """As of `Attack`; `start` is where the first run begins."""
        goal = task.expectation(self.eot, self.batch_size)
        random = is_random(task.model, task.x) or self.eot > 1
        climb = Climb(self.threat, self.iterations, self.stop_draws, LOSSES[self.loss], random)
        return climb.restarted(task, goal, _Inside(self, task.model, task.y, task.targets), self.restarts)


class _Inside(Expectation):
    """Every loss with the attack's losses inside the model added."""

    def __init__(self, attack: DeviatedReconstruction, model: nn.Module, labels: Tensor, targets: Tensor | None):
        super().__init__(model, labels, attack.eot, attack.batch_size, targets)
        self.attack = attack

    def _evaluate(
        self, x: Tensor, keys: Tensor, losses: tuple[Loss, ...], rows: Tensor | slice, which: range
    ) -> list[Tensor]:
        k, attack = len(which), self.attack
        of_draws = torch.cat([draw_keys(keys, draw) for draw in which])
        inside = look_inside(self.model, x.repeat(k, 1, 1, 1), of_draws, attack.points, attack.estimates > 0)
        self.check_logits(inside.result, k * len(x))
        labels, targets = self.labels[rows].repeat(k), None if self.targets is None else self.targets[rows].repeat(k)
        deviation = attack.weight * (inside.states - inside.noised)[1:].square().flatten(2).mean((0, 2))

        def value(loss: Loss) -> Tensor:
            total = loss(inside.result, labels, targets)
            if loss != self._reached:
                total = total + deviation
                if inside.estimates is not None:
                    total = total + attack.estimates * torch.stack(
                        [loss(logits, labels, targets) for logits in inside.estimates]
                    ).mean(0)
            return by_draw(total, k).to(x.dtype)

        return [value(loss) for loss in losses]
