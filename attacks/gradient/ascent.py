"""Runs of Auto-PGD (Croce & Hein 2020, arXiv 2003.01690, algorithm 1) along whatever gradients an expectation gives."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.expectation import Expectation
from attacks.losses import Loss, margin
from attacks.randomness import OfAscent, OfClimb, derive
from attacks.restarts import confirmed, in_turn, where
from attacks.task import BadGradients, Task
from attacks.threats import Threat, random_point

_MOMENTUM, _RISES = 0.75, 0.75  # the paper's alpha and rho


def checkpoints(iterations: int, apart: int = 1) -> list[int]:
    """Iterations at which the step size is judged: ceil(p_j N) with p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j -
    p_{j-1} - 0.03, 0.06) (section 3.1).

    Of those that lie nearer than `apart` to the one before only the first is kept.
    """
    shares = [0, 22]  # in percent: exact
    while shares[-1] < 100:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    chosen = [0]
    for share in shares[1:]:
        at = -(-share * iterations // 100)
        if at < iterations and at >= chosen[-1] + apart:
            chosen.append(at)
    return chosen[1:]


@dataclass(frozen=True)
class Climb:
    """What runs of APGD have in common.

    Args:
        threat: what allows images, and gives steps their direction.
        iterations: gradients of each run.
        stop_draws: an image leaves, as it is, once all draws of a gradient and then so many fresh draws reach the goal;
            0: never.
        loss: what is raised.
        random: whether the model is random: see `attacks.APGD` for what is done about it.
    """

    threat: Threat
    iterations: int
    stop_draws: int
    loss: Loss
    random: bool

    def run(
        self,
        task: Task,
        goal: Expectation,
        steered: Sequence[Expectation],
        keys: Callable[[int], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """The result (b, c, h, w) of one run after another: the best by `goal.choose`, the image itself included.

        Args:
            task: the call; the first run begins at its `start`, if it has one, all others at random points.
            goal: tells what is broken, and compares points in the end.
            steered: for each run, what gives gradients and losses and compares points on the way.
            keys: number of a run -> its keys (b,), and those of its beginning (b,).
        """

        def run(number: int, standing: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor]:
            of_run, of_begin = keys(number)
            begin = random_point(self.threat, task.x, of_begin) if number or task.start is None else task.start
            steered[number].begin()
            report = task.counted(number, len(steered), self.iterations)
            climber = _Climber(self, steered[number], goal, task.gradients, report)
            return climber(task.x, begin, of_run, standing, earlier)

        return in_turn(run, len(steered), task.x)

    def restarted(self, task: Task, goal: Expectation, steered: Expectation, restarts: int) -> Tensor:
        """`run`, so many times along the same gradients."""

        def keys(restart: int) -> tuple[Tensor, Tensor]:
            return derive(task.keys, OfClimb.RUN, restart), derive(task.keys, OfClimb.BEGIN, restart)

        return self.run(task, goal, [steered] * restarts, keys)


@dataclass
class _State:
    """The images that one run still attacks: tensors whose first dimension is the image."""

    rows: Tensor
    keys: Tensor
    x: Tensor
    current: Tensor
    previous: Tensor
    size: Tensor  # (n, 1, 1, 1) step
    loss: Tensor  # of the current iterate
    rises: Tensor  # since the last checkpoint
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    checked: Tensor  # best loss at the last checkpoint
    halved: Tensor  # whether the last checkpoint halved the step
    kept: Tensor  # random models: the winner of the last checkpoint
    kept_gradient: Tensor
    total: Tensor  # sum of the iterates since the last checkpoint
    total_gradient: Tensor
    wrong: Tensor  # the iterate that most draws got wrong
    share: Tensor  # of the draws that got it wrong

    def only(self, kept: Tensor) -> "_State":
        return _State(**{field.name: getattr(self, field.name)[kept] for field in dataclasses.fields(self)})


class _Climber:
    """One run; `steered` has the loss's targets, `goal` those of the attack."""

    def __init__(
        self,
        climb: Climb,
        steered: Expectation,
        goal: Expectation,
        gradients: BadGradients,
        report: Callable[[int], None],
    ):
        self.climb, self.steered, self.goal, self.gradients, self.report = climb, steered, goal, gradients, report
        self.checks = [0, *checkpoints(climb.iterations, apart=4 if climb.random else 1)]

    def __call__(
        self, x: Tensor, begin: Tensor, keys: Tensor, standing: Tensor, earlier: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of the images at `standing`: the best points, `earlier` ones among them (n, c, h, w), and which left as
        broken (n,).
        """
        count, climb = len(standing), self.climb
        found, broken = earlier.clone(), torch.zeros(count, dtype=torch.bool, device=x.device)
        position = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        position[standing] = torch.arange(count, device=x.device)
        s = self._initial(x, begin, keys, standing)
        since = 0  # the last checkpoint
        for step in range(climb.iterations):
            of_step = derive(s.keys, OfAscent.STEP, step)
            gradient, loss, share = self.steered.gradient(s.current, of_step, climb.loss, s.rows)
            if climb.stop_draws:
                stop = derive(s.keys, OfAscent.STOP, step)
                sure = confirmed(self.goal, s.current, share, stop, s.rows, climb.stop_draws)
                found[position[s.rows[sure]]], broken[position[s.rows[sure]]] = s.current[sure], True
                s, gradient, loss, share = s.only(~sure), gradient[~sure], loss[~sure], share[~sure]
                if not len(s.rows):
                    self.report(step + 1)
                    break
            self.gradients.see(gradient, s.rows, share)
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            self._record(s, gradient, loss, share)
            if step == 0:
                s.kept_gradient = gradient
            if step in self.checks[1:]:
                gradient = self._check(s, gradient, step - since, step)
                since = step
            if climb.random:
                s.total, s.total_gradient = s.total + s.current, s.total_gradient + gradient
            self._move(s, gradient, 1.0 if step == 0 else _MOMENTUM)
            self.report(step + 1)
        if len(s.rows):
            candidates = [s.best, s.wrong, s.current]
            if climb.random:
                mean = s.total / (climb.iterations - since)
                candidates += [s.kept, climb.threat.project(mean, s.x)]
            where = position[s.rows]
            select = derive(s.keys, OfAscent.SELECT)
            found[where], _, _ = self.goal.choose([*candidates, earlier[where]], select, margin, s.rows)
        return found, broken

    def _initial(self, x: Tensor, begin: Tensor, keys: Tensor, rows: Tensor) -> _State:
        x, begin = x[rows], begin[rows]
        worst, zero = x.new_full((len(x),), -torch.inf), torch.zeros_like(x)
        return _State(
            rows=rows,
            keys=keys[rows],
            x=x,
            current=begin,
            previous=begin,
            size=x.new_full((len(x), 1, 1, 1), 2 * self.climb.threat.epsilon),
            loss=-worst,  # the first loss is no rise
            rises=torch.zeros_like(rows),
            best=begin,
            best_loss=worst,
            best_gradient=zero,
            checked=worst,
            halved=torch.zeros_like(rows, dtype=torch.bool),
            kept=begin,
            kept_gradient=zero,
            total=zero,
            total_gradient=zero,
            wrong=begin,
            share=worst,
        )

    def _record(self, s: _State, gradient: Tensor, loss: Tensor, share: Tensor) -> None:
        """Takes the current iterate's loss into account."""
        s.rises, s.loss = s.rises + (loss > s.loss), loss
        s.best, s.best_gradient = (
            where(loss > s.best_loss, s.current, s.best),
            where(loss > s.best_loss, gradient, s.best_gradient),
        )
        s.best_loss = torch.where(loss > s.best_loss, loss, s.best_loss)
        s.wrong, s.share = where(share >= s.share, s.current, s.wrong), torch.maximum(share, s.share)

    def _check(self, s: _State, gradient: Tensor, length: int, step: int) -> Tensor:
        """A checkpoint: halves steps and sends their images back to the best point; the gradients to go on with."""
        if self.climb.random:
            mean, mean_gradient = self.climb.threat.project(s.total / length, s.x), s.total_gradient / length
            s.kept, which, loss = self.steered.choose(
                [s.kept, s.best, s.current, mean], derive(s.keys, OfAscent.CHECK, step), self.climb.loss, s.rows
            )
            choices = torch.stack([s.kept_gradient, s.best_gradient, gradient, mean_gradient])
            s.kept_gradient = choices[which, torch.arange(len(which), device=which.device)]
            s.best, s.best_gradient, s.best_loss = s.kept, s.kept_gradient, loss
            stuck = which == 0
            s.total, s.total_gradient = torch.zeros_like(s.x), torch.zeros_like(s.x)
        else:
            stuck = s.best_loss == s.checked
        halve = (s.rises < _RISES * length) | (stuck & ~s.halved)
        s.size = where(halve, s.size / 2, s.size)
        s.current = where(halve, s.best, s.current)
        s.loss = torch.where(halve, s.best_loss, s.loss)
        s.checked, s.halved, s.rises = s.best_loss, halve, torch.zeros_like(s.rises)
        return where(halve, s.best_gradient, gradient)

    def _move(self, s: _State, gradient: Tensor, share: float) -> None:
        """The step of algorithm 1, lines 7 and 8."""
        threat = self.climb.threat
        ahead = threat.project(s.current + s.size * threat.direction(gradient), s.x)
        moved = threat.project(s.current + share * (ahead - s.current) + (1 - share) * (s.current - s.previous), s.x)
        s.previous, s.current = s.current, moved
