"""Several runs of an attack, one after another: images leave once they are broken, and a later run forgets nothing of
what an earlier one found.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.expectation import Expectation, is_random
from attacks.losses import margin
from attacks.randomness import OfSearch, derive, run_keys

CHOICE_DRAWS = 8
"""Least number of draws that choose between two points of a model that takes keys."""

Run = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""run(number, rows, earlier) -> for the images at positions `rows` the points (n, c, h, w) that take the place of the
`earlier` ones, what was found so far; and (n,) bool: which of them leave as broken.
"""

Search = Callable[[Tensor, Tensor, int], tuple[list[Tensor], Tensor]]
"""search(rows, keys, restart) -> candidates (n, c, h, w), the last one as it stands, and (n,) bool: which of them left
as broken.
"""


def in_turn(run: Run, count: int, first: Tensor, standing: Tensor | None = None, group: int | None = None) -> Tensor:
    """The points (b, c, h, w) after `count` runs, each on the images that still stand.

    Args:
        run: one run for some images.
        count: of runs.
        first: (b, c, h, w), what is there before any run.
        standing: (n,) int64 positions of the images that the first run attacks; default all.
        group: most images of one call of `run`; default all.
    """
    found = first.clone()
    standing = torch.arange(len(first), device=first.device) if standing is None else standing
    for number in range(count):
        if not len(standing):
            break
        left = []
        for rows in torch.split(standing, group or len(standing)):
            found[rows], broken = run(number, rows, found[rows])
            left.append(rows[~broken])
        standing = torch.cat(left)
    return found


def best_of(search: Search, restarts: int, judge: Expectation, x: Tensor, keys: Tensor, group: int) -> Tensor:
    """For each image a point that a run left as broken, else the candidate of all runs with the largest mean margin
    over fresh draws.

    Args:
        search: one restart for some images.
        restarts: number of runs; later ones get the images still standing.
        judge: whose draws choose.
        x: (b, c, h, w).
        keys: (b,) int64.
        group: most images of one call of `search`.
    """

    def run(restart: int, rows: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor]:
        of_run = run_keys(keys[rows], restart)
        candidates, broken = search(rows, of_run, restart)
        points, stand = candidates[-1].clone(), ~broken
        if stand.any():
            # at first `earlier` is the image itself, which no search has proposed
            contest = [of[stand] for of in ([earlier] if restart else []) + candidates]
            points[stand] = judge.choose(contest, derive(of_run[stand], OfSearch.CHOOSE), margin, rows[stand])[0]
        return points, broken

    return in_turn(run, restarts, x, group=group)


def judge(expectation: Expectation, x: Tensor) -> Expectation:
    """The same model and goal with enough draws to choose between points: at least `CHOICE_DRAWS` where the model is
    random.
    """
    draws = max(expectation.draws, CHOICE_DRAWS) if is_random(expectation.model, x) else expectation.draws
    return Expectation(
        expectation.model, expectation.labels, draws, expectation.batch_size, expectation.targets, expectation.any_wrong
    )


def confirmed(
    expectation: Expectation, images: Tensor, success: Tensor, keys: Tensor, rows: Tensor, stop_draws: int
) -> Tensor:
    """(n,) bool: images whose share of draws `success` (n,) is 1 and that so many fresh draws under `keys` all get
    wrong too; none where `stop_draws` is 0.
    """
    sure = success == 1
    sure[sure.clone()] = expectation.success(images[sure], keys[sure], rows[sure], stop_draws) == 1
    return sure


def where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """(n, c, h, w): the images of `yes` where the condition (n,) holds, else those of `no`."""
    return torch.where(condition[:, None, None, None], yes, no)
