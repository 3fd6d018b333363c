"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search over squares, from answers alone."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.attack import Attack
from attacks.expectation import Expectation, is_random
from attacks.gradient.pgd import Progress
from attacks.inputs import check_inputs, check_integers_from_zero, check_positive_integers, check_start, check_targets
from attacks.losses import margin
from attacks.randomness import default_keys, mix, uniform
from attacks.restarts import best_of, confirmed, judge
from attacks.threats import L2, Linf, Threat

_START, _PROPOSE, _ANSWER, _STOP = range(4)  # what an attack's randomness is for
_LEAST, _MOST = 4, 64  # draws before a random model's proposal is taken, and before it is given up
# standard errors of a gain that is taken; one of labels then needs two draws more that are wrong
_SURE = {"logits": 2.0, "labels": 1.0}
_WORST = -1e6  # the score of a NaN: finite, so that differences are
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of the budget after which p is halved


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
        if not isinstance(self.threat, Linf | L2):
            raise ValueError(f"threat must be Linf or L2, got {type(self.threat).__name__}")
        check_positive_integers(self, "queries", "eot", "restarts", "batch_size")
        if self.answers not in ("logits", "labels"):
            raise ValueError(f"answers={self.answers!r} is not one of logits, labels")
        if not 0 < self.p <= 1:
            raise ValueError(f"p must lie in (0, 1], got {self.p}")
        check_integers_from_zero(self, "stop_draws")

    @torch.no_grad()
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
        """Adversarial images; arguments and errors as for `PGD`, but for `progress`, which counts queries.

        Raises:
            ValueError: `queries` do not suffice for one proposal and the final choice.
        """
        check_inputs(x, y, keys)
        check_targets(targets, y)
        check_start(start, x, self.threat.distance, self.threat.epsilon)
        keys = default_keys(len(x), x.device) if keys is None else keys.to(x.device)
        expectation = Expectation(model, y, self.eot, self.batch_size, targets)
        choice = judge(expectation, x)
        needed = 2 * self.eot + (2 if self.restarts == 1 else 3) * choice.draws
        if self.queries < needed:
            raise ValueError(
                f"queries must be at least {needed} with eot={self.eot} and restarts={self.restarts} on this model, got"
                f" {self.queries}"
            )

        def run(rows: Tensor, run_keys: Tensor, restart: int) -> tuple[list[Tensor], Tensor]:
            begin = start[rows] if restart == 0 and start is not None else self._begin(x[rows], run_keys)
            found, broken = self._run(
                expectation,
                x[rows],
                begin,
                run_keys,
                rows,
                self.queries - (3 if restart else 2) * choice.draws,
                restart,
                progress,
            )
            return [begin, found], broken

        return best_of(run, self.restarts, len(x), choice, x, keys)

    def _begin(self, x: Tensor, keys: Tensor) -> Tensor:
        """Vertical stripes (Linf) or a chessboard of bumps (L2)."""
        n, c, h, w = x.shape
        if isinstance(self.threat, Linf):
            return self.threat.project(
                x + self.threat.epsilon * _signs(uniform(mix(keys, _START), (c, 1, w), x.dtype)), x
            )
        side = max(min(h, w) // 5, 1)
        tiles = -(-h // side), -(-w // side)
        signs = (
            _signs(uniform(mix(keys, _START), (c, *tiles), x.dtype))
            .repeat_interleave(side, 2)
            .repeat_interleave(side, 3)[..., :h, :w]
        )
        turned = (
            uniform(mix(keys, _START, 1), tiles, x.dtype)
            .repeat_interleave(side, 1)
            .repeat_interleave(side, 2)[:, :h, :w]
            > 0.5
        )
        tile = _bump(side).to(x).repeat(tiles)[:h, :w], _bump(side).T.to(x).repeat(tiles)[:h, :w]
        bumps = torch.where(turned, tile[1], tile[0])
        return self.threat.project(x + self.threat.epsilon * self.threat.direction(signs * bumps[:, None]), x)

    def _run(
        self,
        expectation: Expectation,
        x: Tensor,
        begin: Tensor,
        keys: Tensor,
        rows: Tensor,
        budget: int,
        restart: int,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """The last incumbents (n, c, h, w), and (n,) bool: which of them left as broken."""
        random = is_random(expectation.model, x) or self.eot > 1
        found, proposals = begin.clone(), begin.clone()
        scores, success = self._answers(expectation, found, mix(keys, _ANSWER, 0), rows)
        score, spent = scores.mean(0), torch.full_like(rows, self.eot)
        broken = self._stops(expectation, found, success, keys, rows, 0, budget, spent)
        looks = _Looks(len(x), x)
        searching, step = ~broken, 0
        while True:
            searching &= ~broken & (spent + (1 + random) * self.eot <= budget)
            active = searching.nonzero().squeeze(1)
            if not len(active):
                return found, broken
            step += 1
            new = active[looks.count[active] == 0]
            proposals[new] = self._propose(
                x[new], found[new], spent[new] / self.queries, mix(keys[new], _PROPOSE, step)
            )
            draws = mix(keys[active], _ANSWER, step)
            after, success = self._answers(expectation, proposals[active], draws, rows[active])
            before = (
                self._answers(expectation, found[active], draws, rows[active])[0] if random else score[active][None]
            )
            spent[active] += (1 + random) * self.eot
            better, done = looks.decide(active, after, before, success, random, self.answers)
            chosen = active[better]
            found[chosen], score[chosen] = proposals[chosen], after.mean(0)[better]
            broken[chosen] = self._stops(
                expectation,
                found[chosen],
                looks.success[chosen],
                keys[chosen],
                rows[chosen],
                step,
                budget,
                spent,
                chosen,
            )
            looks.forget(active[done])
            if progress is not None:
                progress(restart * self.queries + int(spent.max()), self.restarts * self.queries)

    def _answers(self, expectation: Expectation, images: Tensor, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(eot, n) what the search raises, and (n,) the share of draws that reached the goal."""

        def answers(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
            margins = margin(logits, labels, targets)
            reached = (margins > 0).to(margins.dtype)
            return torch.stack([reached if self.answers == "labels" else margins, reached], 1)

        draws = torch.cat([mix(keys, draw) for draw in range(self.eot)])
        both = expectation.loss(
            images.repeat(self.eot, 1, 1, 1), draws, answers, rows.repeat(self.eot), draws=1
        ).unflatten(0, (self.eot, len(rows)))
        return both[..., 0].nan_to_num(_WORST, -_WORST, _WORST), both[..., 1].mean(0)

    def _stops(
        self, expectation: Expectation, images: Tensor, success: Tensor,
        keys: Tensor, rows: Tensor, step: int, budget: int, spent: Tensor,
        which: Tensor | slice = slice(None),
    ) -> Tensor:  # fmt: skip
        """(n,) bool: images that fresh draws confirm as broken, as far as the budget of each allows; adds to
        `spent[which]`.
        """
        if not self.stop_draws:
            return torch.zeros_like(success, dtype=torch.bool)
        success = success * (spent[which] + self.stop_draws <= budget)
        spent[which] += self.stop_draws * (success == 1)
        return confirmed(expectation, images, success, mix(keys, _STOP, step), rows, self.stop_draws)

    def _propose(self, x: Tensor, found: Tensor, share: Tensor, keys: Tensor) -> Tensor:
        c, h, w = x.shape[1:]
        halvings = torch.bucketize(share, torch.tensor(_HALVINGS, device=x.device, dtype=share.dtype))
        side = (self.p * 0.5**halvings * h * w).sqrt()
        draws = uniform(keys, (c + 5,), torch.float64)
        signs = _signs(draws[:, :c]).to(x.dtype)[:, :, None, None]
        if isinstance(self.threat, Linf):
            inside, _, _ = _window(draws[:, c : c + 2], side.round().long().clamp(1, min(h, w)), h, w)
            change = self.threat.epsilon * signs
            proposals, other = (self.threat.project(torch.where(inside, x + way * change, found), x) for way in (1, -1))
            same = (proposals == found).flatten(1).all(1)[:, None, None, None]
            return torch.where(same, other, proposals)
        weight = (side / 3).clamp_max(1).to(x.dtype)[:, None, None, None]
        side = (side.round().long().clamp_min(3) | 1).clamp_max((min(h, w) - 1) | 1)
        return self._propose_l2(x, found, side, weight, draws[:, c:], signs)

    def _propose_l2(
        self, x: Tensor, found: Tensor, side: Tensor, weight: Tensor, draws: Tensor, signs: Tensor
    ) -> Tensor:
        """Moves the norm of one window into another, as a bump on top of what is there (Algorithm 3)."""
        h, w = x.shape[2:]
        delta, tiny = found - x, torch.finfo(x.dtype).tiny
        first, row, column = _window(draws[:, :2], side, h, w)
        second, _, _ = _window(draws[:, 2:4], side, h, w)
        bump = _bumps(row, column, side, (draws[:, 4] > 0.5)[:, None, None])[:, None].to(x.dtype) * first
        new = weight * bump / _length(bump).clamp_min(tiny) * signs
        old = delta * first
        new = new + old / _length(old).clamp_min(1e-12)
        spare = (self.threat.epsilon**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min(0) / x.shape[1]
        rest = torch.where(second, (1 - weight) * delta, delta)
        length = (
            spare
            + (delta.square() - torch.where(first, 0.0, rest.square()))
            .where(first | second, 0.0)
            .sum((2, 3), keepdim=True)
        ).sqrt()
        delta = torch.where(first, new / _length(new).clamp_min(tiny) * length, rest)
        return self.threat.project(x + self.threat.epsilon * self.threat.direction(delta), x)


class _Looks:
    """What is known of each image's proposal against its incumbent."""

    def __init__(self, images: int, like: Tensor):
        self.count, self._sum, self._squares, self._reached = (like.new_zeros(images) for _ in range(4))

    @property
    def success(self) -> Tensor:
        """(n,): the share of all draws of the proposal that reached the goal."""
        return self._reached / self.count

    def decide(
        self, active: Tensor, after: Tensor, before: Tensor, success: Tensor, random: bool, answers: str
    ) -> tuple[Tensor, Tensor]:
        """(m,) bool: which proposals are taken, and which are decided upon, from scores (draws, m) of proposal and
        incumbent under the same draws.
        """
        difference, ties = after - before, answers == "labels"
        self.count[active] += len(after)
        self._sum[active] += difference.sum(0)
        self._squares[active] += difference.square().sum(0)
        self._reached[active] += success * len(after)
        count, total, squares = self.count[active], self._sum[active], self._squares[active]
        tie = ties & (squares == 0) & (self.success[active] < 1)
        if not random:
            return (total > 0) | tie, torch.ones_like(tie)
        tie &= self.success[active] == 0
        spread = ((squares - total.square() / count).clamp_min(0) / (count - 1).clamp_min(1)).sqrt()
        sure = (count >= _LEAST) & (total > _SURE[answers] * spread * count.sqrt())
        return sure | tie, sure | tie | (total < 0) | ((total == 0) & (not ties)) | (count >= _MOST)

    def forget(self, images: Tensor) -> None:
        """Their next proposals are new."""
        for value in (self.count, self._sum, self._squares, self._reached):
            value[images] = 0


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -torch.ones_like(uniform), torch.ones_like(uniform))


def _length(x: Tensor) -> Tensor:
    """(n, c, 1, 1): Euclidean norm of each channel."""
    return x.square().sum((2, 3), keepdim=True).sqrt()


def _window(draws: Tensor, side: Tensor, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    """Squares of sides (n,) placed by uniforms (n, 2): (n, 1, h, w) bool: inside; rows and columns counted from their
    corners, (n, h, 1) and (n, 1, w).
    """
    top, left = ((draws[:, i] * (size - side + 1)).long() for i, size in enumerate((h, w)))
    row = torch.arange(h, device=draws.device)[None, :, None] - top[:, None, None]
    column = torch.arange(w, device=draws.device)[None, None] - left[:, None, None]
    side = side[:, None, None]
    return ((row >= 0) & (row < side) & (column >= 0) & (column < side))[:, None], row, column


def _bumps(row: Tensor, column: Tensor, side: Tensor, turned: Tensor) -> Tensor:
    """(n, h, w) float64: each square's bump, without meaning outside of it.

    Args:
        row: (n, h, 1), counted from the square's corner.
        column: (n, 1, w), counted from the square's corner.
        side: (n,).
        turned: (n, 1, 1) bool: the bump's rows are the square's columns.
    """
    row, column = torch.where(turned, column, row), torch.where(turned, row, column)
    out = torch.zeros(row.shape, dtype=torch.float64, device=row.device)
    for size in side.unique().tolist():
        of = (side == size).nonzero().squeeze(1)
        out[of] = _bump(size).to(row.device)[row[of].clamp(0, size - 1), column[of].clamp(0, size - 1)]
    return out


@lru_cache(maxsize=1024)
def _bump(side: int) -> Tensor:
    """(side, side) float64: two peaks of unit length and opposite sign, one above the other; a peak is a sum of growing
    squares, the k-th 1 / k^2 high.
    """
    steps = side // 2 + 1
    # at the distance d from the middle: from the d-th square on
    heights = (1 / torch.arange(1, steps + 1).double().square()).flip(0).cumsum(0).flip(0)
    halves = []
    for height, sign in ((side // 2, 1), (side - side // 2, -1)):
        row, column = (torch.arange(height) - height // 2).abs(), (torch.arange(side) - side // 2).abs()
        peak = heights[torch.maximum(row[:, None], column[None])]
        halves.append(sign * peak / peak.norm().clamp_min(1e-30))
    return torch.cat(halves)
