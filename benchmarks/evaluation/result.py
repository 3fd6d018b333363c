"""What a measurement is: the prediction of every draw, and the accuracies that follow."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from attacks.cost import Cost
from benchmarks.evaluation.statistics import Estimate, bootstrap_mean, wilson
from purify.defences.votes import NO_CLASS, plurality

Randomness = Literal["fresh", "fixed"]

UNDEFINED = NO_CLASS
"""The prediction of an image without a finite logit; equals no label."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        predictions: (n, draws) int64, on the CPU: the label of every draw, or `UNDEFINED`.
        labels: (n,) int64.
        x_adv: (n, c, h, w), on the CPU: the images judged (the clean ones without an attack; with fixed randomness,
            those of draw 0).
        seconds: wall time.
        network_evaluations: images that went through the score network, recomputation for gradients included.
        warnings: what was warned of meanwhile, for instance dead gradients.
        randomness: "fresh" or "fixed", see `evaluate`.
        own_verdict: (n, k) bool: which images an attack that judges by itself (AutoAttack) counts as right, by attack;
            else None.
        attack_cost: images that the attack sent through the attacked model, forward and backward; None where it was not
            counted.
        targets: (n, draws) int64: the classes that a targeted attack sought; else None.
    """

    predictions: Tensor
    labels: Tensor
    x_adv: Tensor
    seconds: float
    network_evaluations: int
    warnings: tuple[str, ...] = ()
    randomness: Randomness = "fresh"
    own_verdict: Tensor | None = None
    attack_cost: Cost | None = None
    targets: Tensor | None = None

    @property
    def right(self) -> Tensor:
        """(n, draws) bool."""
        return self.predictions == self.labels[:, None]

    @property
    def per_image(self) -> Tensor:
        """(n,) float64: each image's accuracy over the draws."""
        return self.right.double().mean(1)

    @cached_property
    def single(self) -> Estimate:
        """Mean over draws of the accuracy of one draw; bootstrap interval over images."""
        return bootstrap_mean(self.per_image.numpy())

    @property
    def worst_of(self) -> dict[int, Estimate]:
        """All draws right; Wilson interval."""
        return {self._draws: wilson(int(self.right.all(1).sum()), len(self.labels))}

    @property
    def majority(self) -> dict[int, Estimate]:
        """The vote of all draws right, a tie counting as wrong; Wilson interval. Empty with fixed randomness: its draws
        see different images.
        """
        if self.randomness == "fixed":
            return {}
        votes = plurality(self.predictions)  # draws without a class are a party of their own, which is never right
        return {self._draws: wilson(int((votes == self.labels).sum()), len(self.labels))}

    @property
    def undefined(self) -> int:
        """How many of the n x draws predictions are `UNDEFINED`."""
        return int((self.predictions == UNDEFINED).sum())

    @property
    def reached(self) -> Estimate | None:
        """Mean over draws of the share of images that are given the class that a targeted attack sought; bootstrap
        interval over images.
        """
        return (
            None
            if self.targets is None
            else bootstrap_mean((self.predictions == self.targets).double().mean(1).numpy())
        )

    @property
    def own(self) -> Estimate | None:
        """The accuracy that the attack's own verdict claims; bootstrap interval over images."""
        return None if self.own_verdict is None else bootstrap_mean(self.own_verdict.double().mean(1).numpy())

    @property
    def _draws(self) -> int:
        return self.predictions.shape[1]

    @staticmethod
    def join(parts: "list[Evaluation]") -> "Evaluation":
        """One evaluation of all images of `parts`."""
        costs = [part.attack_cost for part in parts if part.attack_cost is not None]
        counted = len(costs) == len(parts)
        return Evaluation(
            torch.cat([part.predictions for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.x_adv for part in parts]),
            sum(part.seconds for part in parts),
            sum(part.network_evaluations for part in parts),
            tuple(text for part in parts for text in part.warnings),
            parts[0].randomness,
            _joined([part.own_verdict for part in parts]),
            Cost(sum(cost.forward for cost in costs), sum(cost.backward for cost in costs)) if counted else None,
            _joined([part.targets for part in parts]),
        )


def _joined(tensors: list[Tensor | None]) -> Tensor | None:
    """One tensor of all rows, or None where a part has none."""
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(there) if len(there) == len(tensors) else None
