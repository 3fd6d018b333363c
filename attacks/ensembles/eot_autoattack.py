"""AutoAttack's ensemble (Croce & Hein 2020, arXiv 2003.01690, section 5) for random models: every decision is made by a
mean over draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.attack import Attack
from attacks.expectation import Expectation
from attacks.gradient.apgd import APGD
from attacks.gradient.fab import FAB
from attacks.gradient.pgd import Progress
from attacks.inputs import check_inputs, check_integers_from_zero, check_positive_integers, check_start, check_targets
from attacks.losses import margin
from attacks.query.square import Square
from attacks.randomness import default_keys, mix
from attacks.threats import Threat

PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
_ATTACK, _STOP, _SELECT = range(3)  # what the ensemble's draws are for


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
        check_positive_integers(self, "iterations", "eot", "queries", "batch_size")
        check_integers_from_zero(self, "stop_draws")
        if not isinstance(self.attacks, (tuple, list)) or not self.attacks:
            raise ValueError(f"attacks must be one or more of {', '.join(PARTS)}, got {self.attacks!r}")
        for name in self.attacks:
            if name not in PARTS:
                raise ValueError(f"attacks: {name!r} is not one of {', '.join(PARTS)}")

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
        """Adversarial images; arguments, result and errors as for `PGD`; `progress` counts percents of each part,
        `start` is for the first part.
        """
        check_inputs(x, y, keys)
        check_targets(targets, y)
        check_start(start, x, self.threat.distance, self.threat.epsilon)
        parts = [self._part(name) for name in self.attacks]
        x, keys = x.detach(), default_keys(len(x), x.device) if keys is None else keys.to(x.device)
        goal = Expectation(model, y, self.eot, self.batch_size, targets)
        everything = torch.arange(len(x), device=x.device)
        candidates, standing = [(everything, x)], self._standing(goal, x, mix(keys, _STOP), everything)
        for number, part in enumerate(parts):
            if not len(standing):
                break

            def report(done: int, total: int, number: int = number) -> None:
                if progress is not None:
                    progress(100 * number + 100 * done // total, 100 * len(parts))

            points = part(
                model,
                x[standing],
                y[standing],
                mix(keys[standing], _ATTACK, number),
                report,
                targets=None if targets is None else targets[standing],
                start=start[standing] if start is not None and number == 0 else None,
            )
            candidates.append((standing, points))
            standing = self._standing(goal, points, mix(keys[standing], _STOP, number), standing)
        return self._strongest(goal, candidates, mix(keys, _SELECT))

    def _part(self, name: str) -> Callable[..., Tensor]:
        settings = {"eot": self.eot, "stop_draws": self.stop_draws, "batch_size": self.batch_size}
        if name == "square":
            return Square(self.threat, queries=self.queries, answers="logits", **settings)
        if name.startswith("fab"):
            return FAB(self.threat, iterations=self.iterations, target_classes=9 if name == "fab-t" else 0, **settings)
        if name == "apgd-t":
            return APGD(self.threat, iterations=self.iterations, target_classes=9, **settings)
        return APGD(self.threat, iterations=self.iterations, loss=name.removeprefix("apgd-"), **settings)

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
