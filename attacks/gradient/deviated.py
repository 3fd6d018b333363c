"""DiffAttack (Kang, Song & Li, NeurIPS 2023, arXiv 2311.16124): losses on the states that a purifier passes through."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.attack import Attack
from attacks.expectation import Expectation, is_random
from attacks.gradient.ascent import climb
from attacks.gradient.pgd import Progress
from attacks.inputs import check_inputs, check_integers_from_zero, check_positive_integers, check_start, check_targets
from attacks.losses import LOSSES, Loss
from attacks.protocols import OffersTrajectory, check_offers, look_inside
from attacks.randomness import default_keys, mix
from attacks.threats import Threat


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

    target_classes: ClassVar[int] = 0

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
        check_positive_integers(self, "iterations", "eot", "restarts", "batch_size")
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is not one of {', '.join(LOSSES)}")
        if not isinstance(self.points, int) or self.points < 2:
            raise ValueError(f"points must be an integer from 2, got {self.points!r}")
        for name in ("weight", "estimates"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number from 0, got {getattr(self, name)!r}")
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
        """Adversarial images; arguments, result and errors as for `PGD`.

        Raises:
            ValueError: as `PGD`; a model that does not show its states, see `attacks.protocols.OffersTrajectory`.
        """
        check_inputs(x, y, keys)
        check_targets(targets, y)
        check_start(start, x, self.threat.distance, self.threat.epsilon)
        check_offers(model, type(self).__name__, OffersTrajectory)
        x, keys = x.detach(), default_keys(len(x), x.device) if keys is None else keys.to(x.device)
        steered = _Inside(self, model, y, targets)
        goal = Expectation(model, y, self.eot, self.batch_size, targets)
        return climb(self, x, keys, steered, goal, is_random(model, x) or self.eot > 1, start, progress)


class _Inside(Expectation):
    """Every loss with the attack's losses inside the model added."""

    def __init__(self, attack: DeviatedReconstruction, model: nn.Module, labels: Tensor, targets: Tensor | None):
        super().__init__(model, labels, attack.eot, attack.batch_size, targets)
        self.attack = attack

    def _evaluate(
        self, x: Tensor, keys: Tensor, losses: tuple[Loss, ...], rows: Tensor | slice, which: range
    ) -> list[Tensor]:
        k, attack = len(which), self.attack
        draw_keys = torch.cat([mix(keys, draw) for draw in which])
        inside = look_inside(self.model, x.repeat(k, 1, 1, 1), draw_keys, attack.points, attack.estimates > 0)
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
            return total.unflatten(0, (k, len(x))).to(x.dtype)

        return [value(loss) for loss in losses]
