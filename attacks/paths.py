"""Attacks that move images along a path of their own, by the gradient of the expected loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from attacks.expectation import Expectation
from attacks.losses import LOSSES
from attacks.randomness import OfSearch, derive
from attacks.restarts import best_of, confirmed, judge, where
from attacks.task import Task

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
    """What is read of an attack that follows a path."""

    @property
    def iterations(self) -> int: ...
    @property
    def eot(self) -> int: ...
    @property
    def loss(self) -> str: ...
    @property
    def restarts(self) -> int: ...
    @property
    def stop_draws(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


def attack_along(
    task: Task,
    settings: Settings,
    path: Callable[[Tensor, Tensor, int], Path],
    gradient: Callable[[Expectation], Gradient] | None = None,
) -> Tensor:
    """What a gradient attack returns that follows a path.

    Of each run two points stand for election on fresh draws common to both: the last, and the one whose mean loss over
    its gradient's draws was the largest. Images go through in groups of `batch_size`, so that a path's own graph fits
    memory.

    Args:
        task: the call.
        settings: the attack.
        path: path(rows, keys, restart): where one restart begins for the images at positions `rows`, whose keys in that
            restart are given.
        gradient: makes the gradient of the expected loss from the expectation; default `Expectation.gradient`.
    """
    expectation = task.expectation(settings.eot, settings.batch_size)
    groups = -(-len(task.x) // settings.batch_size)
    follow = _Follow(
        task,
        expectation,
        _mean_loss(expectation, settings.loss) if gradient is None else gradient(expectation),
        path,
        settings.iterations,
        settings.stop_draws,
        settings.restarts * groups * settings.iterations,
    )
    return best_of(follow, settings.restarts, judge(expectation, task.x), task.x, task.keys, group=settings.batch_size)


def _mean_loss(expectation: Expectation, loss: str) -> Gradient:
    return lambda images, keys, rows: expectation.gradient(images, keys, LOSSES[loss], rows)


@dataclass
class _Follow:
    """One restart for some images, as `best_of` asks for."""

    task: Task
    expectation: Expectation
    gradient: Gradient
    path: Callable[[Tensor, Tensor, int], Path]
    iterations: int
    stop_draws: int
    total: int  # gradients of all runs and groups
    done: int = 0

    def __call__(self, rows: Tensor, keys: Tensor, restart: int) -> tuple[list[Tensor], Tensor]:
        path, x = self.path(rows, keys, restart), self.task.x[rows]
        best, best_loss, kept = x.clone(), x.new_full((len(x),), -torch.inf), x.clone()
        broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for step in range(self.iterations):
            active = (~broken).nonzero().squeeze(1)
            if not len(active):
                break
            images, allowed = path.images(active)
            of_step = derive(keys[active], OfSearch.STEP, step)
            gradient, loss, success = self.gradient(images, of_step, rows[active])
            if self.stop_draws:
                stop = derive(keys[active], OfSearch.STOP, step)
                sure = confirmed(self.expectation, images, success * allowed, stop, rows[active], self.stop_draws)
                broken[active[sure]], kept[active[sure]] = True, images[sure]
            better = allowed & (loss.nan_to_num(-torch.inf, -torch.inf) > best_loss[active])
            best[active[better]], best_loss[active[better]] = images[better], loss[better]
            self.task.gradients.see(gradient, rows[active], success)
            path.move(active, gradient.nan_to_num(0.0, 0.0, 0.0))
            self.done += 1
            self.task.progress(self.done, self.total)
        return [best, where(broken, kept, path.finish())], broken
