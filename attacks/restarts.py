"""What iterative attacks share: images that leave once they are broken, restarts, and the choice of what comes back on
fresh draws.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from attacks.expectation import Expectation, is_random
from attacks.gradient.pgd import BadGradients, Progress
from attacks.inputs import check_inputs, check_targets
from attacks.losses import LOSSES, margin
from attacks.randomness import default_keys, mix

CHOICE_DRAWS = 8
"""Least number of draws that choose between two points of a model that takes keys."""

_STEP, _STOP, _CHOOSE = 0x10, 0x11, 0x12  # what a search's draws are for

Run = Callable[[Tensor, Tensor, int], tuple[list[Tensor], Tensor]]
"""run(rows, keys, restart) -> candidates (n, c, h, w), the last one as it stands, and (n,) bool: which of them left as
broken.
"""

Gradient = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""gradient(images, keys, rows) -> gradient of the mean loss, mean loss, share of draws that reached the goal, as
`Expectation.gradient`.
"""


class Path(Protocol):
    """Where an attack is: images that it moves along gradients."""

    def images(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """(m, c, h, w) in [0, 1], detached: the images at positions `active`; and (m,) bool: which of them the threat
        allows.
        """

    def move(self, active: Tensor, gradient: Tensor) -> None:
        """One step with the finite gradient (m, c, h, w) in the images that `images(active)` gave last."""

    def finish(self) -> Tensor:
        """(n, c, h, w): allowed images at the end."""


class Settings(Protocol):
    """What `attack_along` reads of an attack."""

    iterations: int
    eot: int
    loss: str
    restarts: int
    stop_draws: int
    batch_size: int


def attack_along(
    settings: Settings,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    keys: Tensor | None,
    progress: Progress | None,
    targets: Tensor | None,
    path: Callable[[Tensor, Tensor, int], Path],
    gradient: Callable[[Expectation], Gradient] | None = None,
) -> Tensor:
    """What a gradient attack returns that follows a path.

    Of each run two points stand for election on fresh draws common to both: the last, and the one whose mean loss over
    its gradient's draws was the largest. Images go through in groups of `batch_size`, so that a path's own graph fits
    memory.

    Args:
        settings: the attack.
        model: as for a call of `PGD`.
        x: as for `PGD`.
        y: as for `PGD`.
        keys: as for `PGD`.
        progress: as for `PGD`.
        targets: as for `PGD`.
        path: path(rows, keys, restart): where one restart begins for the images at positions `rows`, whose keys in that
            restart are given.
        gradient: makes the gradient of the expected loss from the expectation; default `Expectation.gradient`.
    """
    check_inputs(x, y, keys)
    check_targets(targets, y)
    x, keys = x.detach(), default_keys(len(x), x.device) if keys is None else keys.to(x.device)
    expectation = Expectation(model, y, settings.eot, settings.batch_size, targets)
    if gradient is None:
        loss = LOSSES[settings.loss]
        evaluate: Gradient = lambda images, step_keys, rows: expectation.gradient(images, step_keys, loss, rows)  # noqa: E731
    else:
        evaluate = gradient(expectation)
    groups = -(-len(x) // settings.batch_size)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, settings.restarts * groups * settings.iterations)

    def run(rows: Tensor, run_keys: Tensor, restart: int) -> tuple[list[Tensor], Tensor]:
        return _follow(
            path(rows, run_keys, restart),
            expectation,
            evaluate,
            x[rows],
            run_keys,
            rows,
            settings.iterations,
            settings.stop_draws,
            advance,
        )

    return best_of(run, settings.restarts, settings.batch_size, judge(expectation, x), x, keys)


def judge(expectation: Expectation, x: Tensor) -> Expectation:
    """The same model and goal with enough draws to choose between points: at least `CHOICE_DRAWS` where the model is
    random.
    """
    draws = max(expectation.draws, CHOICE_DRAWS) if is_random(expectation.model, x) else expectation.draws
    return Expectation(
        expectation.model, expectation.labels, draws, expectation.batch_size, expectation.targets, expectation.any_wrong
    )


def best_of(run: Run, restarts: int, group: int, judge: Expectation, x: Tensor, keys: Tensor) -> Tensor:
    """For each image a point that a run left as broken, else the candidate of all runs with the largest mean margin
    over fresh draws.

    Args:
        run: one restart for some images.
        restarts: number of runs; later ones get the images still standing.
        group: most images of one call of `run`.
        judge: whose draws choose.
        x: (b, c, h, w).
        keys: (b,) int64.
    """
    best, standing = x.clone(), torch.arange(len(x), device=x.device)
    for restart in range(restarts):
        left = []
        for rows in standing.split(group):
            run_keys = mix(keys[rows], restart)
            candidates, broken = run(rows, run_keys, restart)
            best_so_far = [best[rows]] if restart else []
            best[rows[broken]] = candidates[-1][broken]
            rows, candidates = rows[~broken], [points[~broken] for points in (*best_so_far, *candidates)]
            if len(rows):
                best[rows] = judge.choose(candidates, mix(run_keys[~broken], _CHOOSE), margin, rows)[0]
            left.append(rows)
        standing = torch.cat(left)
        if not len(standing):
            break
    return best.detach()


def confirmed(
    expectation: Expectation, images: Tensor, success: Tensor, keys: Tensor, rows: Tensor, stop_draws: int
) -> Tensor:
    """(n,) bool: images whose share of draws `success` (n,) is 1 and that so many fresh draws under `keys` all get
    wrong too.
    """
    sure = success == 1
    sure[sure.clone()] = expectation.success(images[sure], keys[sure], rows[sure], stop_draws) == 1
    return sure


def largest_factor(allowed: Callable[[Tensor], Tensor], count: int, like: Tensor, halvings: int = 16) -> Tensor:
    """(count,): factors in [0, 1] at which `allowed(factors)` (count,) bool holds: 1 where it does, else by bisection;
    0 is taken to be allowed.
    """
    low, high = like.new_zeros(count), like.new_ones(count)
    whole = allowed(high)
    for _ in range(0 if whole.all() else halvings):
        middle = (low + high) / 2
        inside = allowed(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return torch.where(whole, torch.ones_like(low), low)


def _follow(
    path: Path,
    expectation: Expectation,
    evaluate: Gradient,
    x: Tensor,
    keys: Tensor,
    rows: Tensor,
    iterations: int,
    stop_draws: int,
    advance: Callable[[], None],
) -> tuple[list[Tensor], Tensor]:
    best, best_loss, kept = x.clone(), x.new_full((len(x),), -torch.inf), x.clone()
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    gradients = BadGradients(len(x), x.device)
    for step in range(iterations):
        active = (~broken).nonzero().squeeze(1)
        if not len(active):
            break
        images, allowed = path.images(active)
        gradient, loss, success = evaluate(images, mix(keys[active], _STEP, step), rows[active])
        if stop_draws:
            sure = confirmed(
                expectation, images, success * allowed, mix(keys[active], _STOP, step), rows[active], stop_draws
            )
            broken[active[sure]], kept[active[sure]] = True, images[sure]
        better = allowed & (loss.nan_to_num(-torch.inf, -torch.inf) > best_loss[active])
        best[active[better]], best_loss[active[better]] = images[better], loss[better]
        gradients.see(gradient, active, success)
        path.move(active, gradient.nan_to_num(0.0, 0.0, 0.0))
        advance()
    gradients.warn(iterations)
    return [best, torch.where(broken[:, None, None, None], kept, path.finish())], broken
