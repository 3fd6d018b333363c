"""AutoAttack's ensemble (Croce & Hein 2020, arXiv 2003.01690, section 5) for random models: every decision is made by a
mean over draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.expectation import Expectation
from attacks.gradient.apgd import APGD
from attacks.gradient.fab import FAB
from attacks.inputs import also_called, check_choices
from attacks.losses import margin
from attacks.query.square import Square
from attacks.randomness import OfEOTAutoAttack, derive
from attacks.task import Task, part_of
from attacks.threats import Threat

PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


@also_called(steps="iterations")
@dataclass(frozen=True)
class EOTAutoAttack(Attack):
    """The parts in order, each on the images that still stand; every image keeps the strongest candidate of all parts.

    An image stands until the clean image or a part's result is misclassified (targeted: as the target) in all of
    `stop_draws` fresh draws. In the end every image's candidates, the clean one among them, are compared by their mean
    margin over `eot` fresh draws common to them. The official ensemble, `AutoAttack`, decides both by single draws.

    Args:
        threat: `Linf` or `L2`.
        iterations: of each run of APGD and FAB.
        eot: draws of the model per gradient, query and comparison.
        queries: of Square, where every draw counts: with `eot` = 20, 5,000 are about 125 proposals.
        attacks: the parts in order: "apgd-ce", "apgd-dlr", "apgd-t" (towards 9 classes), "fab", "fab-t" (towards 9
            classes), "square". The default is that of the official version "standard".
        stop_draws: see above; also those of the parts. 0: all parts attack all images. An image with a share q of wrong
            draws leaves at each test with probability q^stop_draws, and keeps the example that it left with: few draws
            save work, and let images go that a fresh draw may still get right.
        batch_size: rows (images times draws) of one call of the model, halved where memory runs out.
    """

    lengths: ClassVar[tuple[str, ...]] = ("iterations", "queries")

    threat: Threat
    iterations: int = 100
    eot: int = 20
    queries: int = 5000
    attacks: tuple[str, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
    stop_draws: int = 32
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attacks, (tuple, list)) or not self.attacks:
            raise ValueError(f"attacks must be one or more of {', '.join(PARTS)}, got {self.attacks!r}")
        check_choices(self, "attacks", PARTS)

    @property
    def revision(self) -> int:
        """The largest of its parts'."""
        return max(self._part(name).revision for name in self.attacks)

    def run(self, task: Task) -> Tensor:
        """As of `Attack`; `progress` counts percents of each part, `start` is for the first part."""
        parts = [self._part(name) for name in self.attacks]
        goal, keys = task.expectation(self.eot, self.batch_size), task.keys
        standing = self._standing(goal, task.x, derive(keys, OfEOTAutoAttack.STOP), task.everything)
        candidates = [(task.everything, task.x)]
        for number, part in enumerate(parts):
            if not len(standing):
                break
            report = task.counted(number, len(parts), 100)
            with part_of((task.gradients, standing)):
                points = part(
                    task.model,
                    task.x[standing],
                    task.y[standing],
                    derive(keys[standing], OfEOTAutoAttack.ATTACK, number),
                    partial(_percent, report),
                    targets=None if task.targets is None else task.targets[standing],
                    start=task.start[standing] if task.start is not None and number == 0 else None,
                )
            candidates.append((standing, points))
            fresh = derive(keys[standing], OfEOTAutoAttack.STOP, number)
            standing = self._standing(goal, points, fresh, standing)
        return self._strongest(goal, candidates, derive(keys, OfEOTAutoAttack.SELECT))

    def _part(self, name: str) -> Attack:
        settings: dict[str, Any] = {"eot": self.eot, "stop_draws": self.stop_draws, "batch_size": self.batch_size}
        if name == "square":
            return Square(self.threat, queries=self.queries, answers="logits", **settings)
        settings["iterations"] = self.iterations
        if name.startswith("fab"):
            return FAB(self.threat, target_classes=9 if name == "fab-t" else 0, **settings)
        if name == "apgd-t":
            return APGD(self.threat, target_classes=9, **settings)
        return APGD(self.threat, loss=name.removeprefix("apgd-"), **settings)

    def _standing(self, goal: Expectation, points: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        """Those of `rows` whose points (n, c, h, w) do not reach the goal in all of the fresh draws."""
        return rows[goal.success(points, keys, rows, self.stop_draws) < 1] if self.stop_draws else rows

    def _strongest(self, goal: Expectation, candidates: list[tuple[Tensor, Tensor]], keys: Tensor) -> Tensor:
        """For each image its candidate, given as (rows, points), of largest mean margin."""
        best = candidates[0][1].clone()
        largest = best.new_full((len(best),), -torch.inf)
        for rows, points in candidates:
            reached = goal.loss(points, keys[rows], margin, rows)
            better = reached > largest[rows]
            best[rows[better]], largest[rows[better]] = points[better], reached[better]
        return best


def _percent(report: Callable[[int], None], done: int, total: int) -> None:
    report(100 * done // total)
