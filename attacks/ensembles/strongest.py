"""An adaptive ensemble: attacks from cheap to expensive, whose budget goes to the images that still stand."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.ensembles.stages import STAGES, Shape
from attacks.expectation import is_random
from attacks.inputs import check_choices, check_positive_integers
from attacks.losses import margin
from attacks.protocols import shows_states
from attacks.randomness import OfStrongest, derive
from attacks.task import Task, part_of
from attacks.threats import Threat

_GOOD_DRAWS = 4  # per gradient, below which attacks are dropped rather than weakened further


class Spending(NamedTuple):
    """What one attack of a sequence cost."""

    name: str
    attack: Any
    """Its settings."""
    round: int
    images: int
    """That it attacked."""
    evaluations: int
    improved: int
    """Images whose example it replaced."""
    standing: int
    """Images that stand after it."""


@dataclass(frozen=True)
class Strongest(Attack):
    """Runs `sequence` in order on the images that still stand, again and again with other randomness until the budget
    is spent.

    An evaluation is an image that goes forward through the model; one that is differentiated counts as three. Each
    attack gets a share of what is left, divided among the images that stand, in the form of iterations and draws: first
    10 iterations with all `eot` draws, then more iterations; with less, fewer draws, down to 4; with still less the
    later attacks are left out. So images that fall early pay for the others.

    Every result is compared with the best so far, the clean image being the first, by the mean margin over
    `select_draws` draws, the same for all of an image's candidates: the larger stays. An image leaves once `stop_draws`
    draws, fresh ones after every attack, all get its best example wrong. None of these draws is one that an attack has
    seen, and an evaluation's are others again.

    An attack that would exceed the budget is broken off at the next gradient, without a result; the spending exceeds
    the budget by no more than that.

    What becomes of an image depends on the others in the call, for what they leave of the budget.

    Args:
        threat: `Linf` or `L2`.
        budget: evaluations for each image, on average.
        eot: largest number of draws of the model per gradient; default 8, or 1 for a deterministic model (see
            `attacks.expectation.is_random`).
        sequence: names from `attacks.ensembles.stages.STAGES`, cheap ones first; default all. "hammer" is left out for
            a deterministic model, "deviated" for one that shows no states (see `attacks.protocols`).
        select_draws: draws that choose an image's example; 1 for a deterministic model.
        stop_draws: draws that must all be wrong for an image to leave; 1 for a deterministic model. An image with a
            share q of wrong draws leaves at each test with probability q^stop_draws, and keeps what it left with; once
            all have left, what remains of the budget is not spent.
        batch_size: rows (images times draws) of one call of the model, halved where memory runs out.
        report: called after each attack with its `Spending`, in order.
    """

    lengths: ClassVar[tuple[str, ...]] = ("budget",)
    unit: ClassVar[str] = "evaluations"
    by_image: ClassVar[bool] = False

    threat: Threat
    budget: int
    eot: int | None = None
    sequence: tuple[str, ...] = ()
    select_draws: int = 8
    stop_draws: int = 32
    batch_size: int = 256
    report: Callable[[Spending], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_integers(self, "select_draws", "stop_draws")
        if not self.sequence:
            object.__setattr__(self, "sequence", tuple(STAGES))
        check_choices(self, "sequence", STAGES)

    @property
    def revision(self) -> int:
        """1: runs of its parts have had other keys since version 0.2, see `FAB` and `APGD`."""
        return 1

    def run(self, task: Task) -> Tensor:
        """As of `Attack`, but `progress` counts evaluations, and `start` is a candidate beside the clean image.

        Raises:
            ValueError: a budget that the cheapest attack of the sequence exceeds.
        """
        return _Campaign(self, task).run()


def strongest(threat: Threat, budget: int, **settings: Any) -> Strongest:
    """The strongest attack that `budget` evaluations an image can pay: see `Strongest`, whose other arguments are
    `settings`.
    """
    return Strongest(threat, budget, **settings)


class _OutOfBudget(Exception):
    """Breaks an attack off."""


class _Campaign:
    """One call of a `Strongest`."""

    def __init__(self, settings: Strongest, task: Task):
        self.settings, self.task = settings, task
        model, x = task.model, task.x
        random = is_random(model, x) or (settings.eot or 1) > 1
        self.shape = Shape(
            threat=settings.threat,
            eot=settings.eot or (8 if random else 1),
            random=random,
            stop_draws=settings.stop_draws if random else 1,
            batch_size=settings.batch_size,
            targeted=task.targets is not None,
            shows_states="deviated" in settings.sequence and shows_states(model, x[:1], task.keys[:1]),
        )
        self.select_draws = settings.select_draws if random else 1
        self.total = settings.budget * len(x)
        self.expectation = task.expectation(self.select_draws, settings.batch_size)
        self.best, self.best_margin = x, x.new_full((len(x),), -torch.inf)
        self.standing = task.everything
        self.judged = 0

    def run(self) -> Tensor:
        names = [name for name in self.settings.sequence if STAGES[name].fits(self.shape)]
        if not names:
            raise ValueError(
                f"sequence={self.settings.sequence} has no attack that fits the model {type(self.task.model).__name__}"
            )
        first = [self.task.x] if self.task.start is None else [self.task.x, self.task.start]
        self._check_budget(names, candidates=len(first))
        for points in first:
            self._take(points)
        self._leave()
        pending, number = names, 0
        while len(self.standing):
            affordable = self._affordable(pending)
            if not affordable and pending == names:
                break
            if affordable:
                name, attack = next(iter(affordable.items()))
                self._attack(name, attack, number)
                pending = pending[pending.index(name) + 1 :]
            if not affordable or not pending:
                pending, number = names, number + 1
        return self.best

    def _check_budget(self, names: Sequence[str], candidates: int) -> None:
        least = next(
            allowance
            for allowance in itertools.count(1)
            if any(STAGES[name].plan(self.shape, allowance) for name in names)
        )
        least += (candidates + 1) * self.select_draws + 2 * self.shape.stop_draws
        if self.settings.budget < least:
            raise ValueError(
                f"budget={self.settings.budget} evaluations an image is less than {least}, what the cheapest attack of"
                " the sequence needs"
            )

    def _affordable(self, names: Sequence[str]) -> dict[str, Any]:
        """The attacks of `names` that can be paid, each with its share of what is left: few good ones rather than many
        weak ones, the last ones go first.
        """
        for least in sorted({min(self.shape.eot, _GOOD_DRAWS), 1}, reverse=True):
            chosen, shape = list(names), self.shape._replace(least_draws=least)
            while chosen:
                whole = (self.total - self._spent()) / len(self.standing) / sum(STAGES[name].weight for name in chosen)
                judging = self.select_draws + self.shape.stop_draws
                plans = {name: STAGES[name].plan(shape, whole * STAGES[name].weight - judging) for name in chosen}
                missing = [name for name, attack in plans.items() if attack is None]
                if not missing:
                    return plans
                chosen.remove(missing[-1])
        return {}

    def _attack(self, name: str, attack: Any, number: int) -> None:
        """Runs one attack on what stands."""
        task, rows, before = self.task, self.standing, self._spent()
        options: dict[str, Any] = {} if task.targets is None else {"targets": task.targets[rows]}
        if STAGES[name].goes_on:
            options["start"] = self.best[rows]
        keys = derive(task.keys[rows], OfStrongest.ATTACK, number, list(STAGES).index(name))
        improved = 0
        try:
            with part_of((task.gradients, rows)):
                x_adv = attack(task.model, task.x[rows], task.y[rows], keys=keys, progress=self._watch, **options)
        except _OutOfBudget:
            pass
        else:
            improved = self._take(x_adv)
            self._leave()
        if self.settings.report is not None:
            self.settings.report(
                Spending(name, attack, number, len(rows), self._spent() - before, improved, len(self.standing))
            )

    def _take(self, x_adv: Tensor) -> int:
        """Keeps the examples (standing images, c, h, w) that are better than the best; how many are."""
        rows = self.standing
        reached = self.expectation.loss(
            x_adv, derive(self.task.keys[rows], OfStrongest.SELECT), margin, rows
        ).nan_to_num(-torch.inf)
        better = reached > self.best_margin[rows]
        self.best = self.best.index_copy(0, rows[better], x_adv[better])
        self.best_margin[rows[better]] = reached[better]
        return int(better.sum())

    def _leave(self) -> None:
        """Drops the images whose best example all fresh draws get wrong."""
        rows = self.standing
        self.judged += 1
        fresh = derive(self.task.keys[rows], OfStrongest.STOP, self.judged)
        wrong = self.expectation.success(self.best[rows], fresh, rows, self.shape.stop_draws)
        self.standing = rows[wrong < 1]

    def _spent(self) -> int:
        return self.task.cost.forward + 2 * self.task.cost.backward

    def _watch(self, done: int, total: int) -> None:
        """The `progress` of every attack."""
        self.task.progress(min(self._spent(), self.total), self.total)
        if self._spent() > self.total and done < total:
            raise _OutOfBudget
