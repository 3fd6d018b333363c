"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search over squares, from answers alone."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.expectation import Expectation, by_draw, is_random
from attacks.inputs import check_choice, check_kind
from attacks.losses import margin
from attacks.query.looks import Looks
from attacks.query.squares import first_point, propose
from attacks.randomness import OfSearch, derive, draw_keys
from attacks.restarts import best_of, confirmed, judge
from attacks.task import Task
from attacks.threats import L2, Linf, Threat

_WORST = -1e6  # the score of a NaN: finite, so that differences are


@dataclass(frozen=True)
class Square(Attack):
    """Proposes a change in one square at a time and keeps it where the model's answers get worse.

    Squares, signs and the schedule of their size are the paper's (Algorithms 1 to 3; p is halved at 0.1, 0.5, 2, 5, 10,
    20, 40, 60 and 80 % of the budget). Three things differ. Squares reach the last row and column. Under L2, where
    squares stop shrinking at 3 pixels, the change within them goes on shrinking with the schedule: the paper's form
    gets stuck, at 75 % of the optimum of a linear model of 64 pixels where this one reaches 90 % in 1000 queries. And a
    random model's proposal is compared with its incumbent on the same fresh draws (differences of a defence under the
    same noise vary less than its answers), look by look: it is given up once its mean gain is not positive, and taken
    once it has seen at least 4 draws and the mean gain is 2 standard errors (with labels: 1). A rule without the
    standard errors takes nearly as many steps back as forward: behind noise of 3 times the signal it got to 40 % of the
    optimum of a linear model in 4000 queries, this one to 65 %. What was found is judged once more, against where the
    search began, on fresh draws.

    On linear models it reaches 90 % of the optimum in 1000 queries: of 108 pixels under Linf, of 49 under L2; the tests
    hold it to that.

    Args:
        threat: `Linf` or `L2`.
        queries: images sent to the model for each image and restart, every draw counted, those that stop or choose
            included.
        eot: draws of the model in each look.
        answers: "logits": the mean margin over the draws is raised. "labels": only predicted labels are read, and the
            share of wrong draws is raised; a proposal with the same answers is taken where it costs nothing (a random
            model: while all draws are right; else: until the goal is reached), which is how the search crosses
            plateaus.
        p: share of the pixels in the first square.
        restarts: independent runs; the best is kept on fresh draws.
        stop_draws: an image leaves, as it is, once all `eot` draws of an answer and then so many fresh draws reach the
            goal; 0: never.
        batch_size: rows (images times draws) of one call of the model, halved where memory runs out.
    """

    query_only: ClassVar[bool] = True
    lengths: ClassVar[tuple[str, ...]] = ("queries",)
    unit: ClassVar[str] = "queries"

    threat: Threat
    queries: int = 5000
    eot: int = 1
    answers: Literal["logits", "labels"] = "logits"
    p: float = 0.8
    restarts: int = 1
    stop_draws: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kind(self, "threat", Linf, L2)
        check_choice(self, "answers", ("logits", "labels"))
        if not 0 < self.p <= 1:
            raise ValueError(f"p must lie in (0, 1], got {self.p}")

    @torch.no_grad()
    def run(self, task: Task) -> Tensor:
        """As of `Attack`, but for `progress`, which counts queries.

        Raises:
            ValueError: `queries` do not suffice for one proposal and the final choice.
        """
        expectation = task.expectation(self.eot, self.batch_size)
        choice = judge(expectation, task.x)
        needed = 2 * self.eot + (2 if self.restarts == 1 else 3) * choice.draws
        if self.queries < needed:
            raise ValueError(
                f"queries must be at least {needed} with eot={self.eot} and restarts={self.restarts} on this model, got"
                f" {self.queries}"
            )

        def search(rows: Tensor, keys: Tensor, restart: int) -> tuple[list[Tensor], Tensor]:
            if task.start is not None and restart == 0:
                begin = task.start[rows]
            else:
                begin = first_point(self.threat, task.x[rows], keys)
            run = _Run(self, expectation, task, rows, keys, restart)
            found, broken = run(begin, self.queries - (3 if restart else 2) * choice.draws)
            return [begin, found], broken

        return best_of(search, self.restarts, choice, task.x, task.keys, group=len(task.x))


class _Run:
    """One run for the images at `rows`, whose keys in that run are given."""

    def __init__(self, attack: Square, expectation: Expectation, task: Task, rows: Tensor, keys: Tensor, restart: int):
        self.attack, self.expectation, self.rows, self.keys = attack, expectation, rows, keys
        self.x, self.random = task.x[rows], is_random(task.model, task.x[rows]) or attack.eot > 1
        self.report = task.counted(restart, attack.restarts, attack.queries)
        self.spent = torch.zeros_like(rows)

    def __call__(self, begin: Tensor, budget: int) -> tuple[Tensor, Tensor]:
        """The last incumbents (n, c, h, w), and (n,) bool: which of them left as broken."""
        eot, keys, spent = self.attack.eot, self.keys, self.spent
        found, proposals = begin.clone(), begin.clone()
        everything = torch.arange(len(begin), device=begin.device)
        scores, success = self._answers(found, everything, 0)
        score = scores.mean(0)
        broken = self._stops(found, success, everything, 0, budget)
        looks = Looks(len(begin), begin)
        searching, step = ~broken, 0
        while True:
            searching &= ~broken & (spent + (1 + self.random) * eot <= budget)
            active = searching.nonzero().squeeze(1)
            if not len(active):
                return found, broken
            step += 1
            new = active[looks.count[active] == 0]
            of_step, share = derive(keys[new], OfSearch.PROPOSE, step), spent[new] / self.attack.queries
            proposals[new] = propose(self.attack.threat, self.attack.p, self.x[new], found[new], share, of_step)
            after, success = self._answers(proposals, active, step)
            before = self._answers(found, active, step)[0] if self.random else score[active][None]
            better, done = looks.decide(active, after, before, success, self.random, self.attack.answers)
            chosen = active[better]
            found[chosen], score[chosen] = proposals[chosen], after.mean(0)[better]
            broken[chosen] = self._stops(found, looks.success[chosen], chosen, step, budget)
            looks.forget(active[done])
            self.report(int(spent.max()))

    def _answers(self, images: Tensor, which: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """(eot, m) what the search raises, and (m,) the share of draws that reached the goal, for the images (n, c, h,
        w) at positions `which`, under the draws of a step.
        """
        eot, of_step = self.attack.eot, derive(self.keys[which], OfSearch.ANSWER, step)

        def answers(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
            margins = margin(logits, labels, targets)
            reached = (margins > 0).to(margins.dtype)
            return torch.stack([reached if self.attack.answers == "labels" else margins, reached], 1)

        draws = torch.cat([draw_keys(of_step, draw) for draw in range(eot)])
        repeated, rows = images[which].repeat(eot, 1, 1, 1), self.rows[which].repeat(eot)
        both = by_draw(self.expectation.loss(repeated, draws, answers, rows, draws=1), eot)
        self.spent[which] += eot
        return both[..., 0].nan_to_num(_WORST, -_WORST, _WORST), both[..., 1].mean(0)

    def _stops(self, images: Tensor, success: Tensor, which: Tensor, step: int, budget: int) -> Tensor:
        """(m,) bool: those of the images (n, c, h, w) at positions `which` that fresh draws confirm as broken, as far
        as the budget of each allows.
        """
        draws = self.attack.stop_draws
        if not draws:
            return torch.zeros_like(success, dtype=torch.bool)
        success = success * (self.spent[which] + draws <= budget)
        self.spent[which] += draws * (success == 1)
        stop = derive(self.keys[which], OfSearch.CONFIRM, step)
        return confirmed(self.expectation, images[which], success, stop, self.rows[which], draws)
