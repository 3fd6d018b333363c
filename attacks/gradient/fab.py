"""FAB (Croce & Hein 2020, arXiv 1907.02044): the nearest misclassified point, for random models the nearest one of mean
margin 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from attacks.attack import Attack
from attacks.expectation import Expectation, is_random
from attacks.inputs import also_called
from attacks.losses import Loss, margin
from attacks.randomness import OfFAB, OfFABRun, derive, run_keys, uniform
from attacks.restarts import in_turn, where
from attacks.task import Progress, Task
from attacks.threats import Threat

_ALPHA_MAX, _ETA, _BETA = 0.1, 1.05, 0.9  # the paper's bias to the original image, overshoot and backward step
_HALVINGS, _REACH = 10, 2.0  # of the final search: steps, and how far beyond a point it begins


def onto_hyperplane(x: Tensor, gradient: Tensor, value: Tensor, threat: Threat) -> Tensor:
    """The smallest d, in the norm of `threat`, with value + <gradient, d> = 0 and x + d in [0, 1] (section 2.1), exact
    in closed form.

    Each pixel moves at the norm's speed, 1 for Linf and |gradient| for L2, until it meets the box, all until the value
    is made good: a piecewise linear function of time, whose breakpoints are sorted. Where the box holds no such point,
    d goes to the corner nearest in value.

    Args:
        x: (n, c, h, w) in [0, 1].
        gradient: (n, c, h, w).
        value: (n,), of the linear function at `x`.
        threat: gives the norm; its epsilon does not matter.
    """
    towards = -value.sign()[:, None] * gradient.flatten(1)
    room = torch.where(towards > 0, 1 - x.flatten(1), x.flatten(1))
    slope, speed = towards.abs(), threat.direction(gradient).flatten(1).abs()
    time = torch.where(speed > 0, room / speed.clamp_min(torch.finfo(x.dtype).tiny), 0.0)
    time, order = time.sort(dim=1)
    slope_, speed_, room_ = (values.gather(1, order) for values in (slope, speed, room))
    rate = (slope_ * speed_).flip(1).cumsum(1).flip(1)  # of the pixels that still move before each breakpoint
    arrived = (slope_ * room_).cumsum(1) - slope_ * room_  # by those that already stopped
    reached = arrived + rate * time  # the value made good at each breakpoint
    index = (reached < value.abs()[:, None]).sum(1, keepdim=True).clamp_max(time.shape[1] - 1)
    missing = value.abs()[:, None] - arrived.gather(1, index)
    moment = torch.minimum(missing / rate.gather(1, index).clamp_min(torch.finfo(x.dtype).tiny), time[:, -1:])
    return (towards.sign() * torch.minimum(moment * speed, room)).reshape(x.shape)


@also_called(steps="iterations")
@dataclass(frozen=True)
class FAB(Attack):
    """Steps onto the linearised decision boundary, drawn towards the image, and back from beyond it; the nearest point
    found is sought again on its ray.

    The published algorithm with its constants (alpha_max = 0.1, eta = 1.05, beta = 0.9) and a final search on the
    segment to the image, by bisection. As in AutoAttack's FAB-T each run goes towards one class, so that a step costs
    one gradient whatever the number of classes.

    For a random model the boundary is where the mean margin is 0. The nearest of many points that were on the wrong
    side by the mean of fresh draws is a lucky one, so distances come only from the final search: along the rays through
    the nearest such point, the last one and the mean of the second half of the run's, by draws that no step used and
    that all points of an image share: their standard error is that of a mean margin over `eot` draws, divided by the
    margin's slope along the ray. And since half of the draws are still right on the boundary, a call returns the point
    at the threat's border on the same ray where its mean margin is larger.

    Args:
        threat: `Linf` or `L2`.
        iterations: gradients per run; each goes with one evaluation without gradient, and the final search takes 12
            evaluations, for random models 36.
        eot: draws of the model per gradient and evaluation.
        target_classes: runs towards each of the n wrong classes of largest mean logit, of which there are at most all;
            0: one run (per restart) across the boundary of the margin, that is towards the wrong class that is largest
            at each step. Without effect where a call gives targets.
        restarts: runs for each class: the first one from the image, further ones from random points of half the
            threat's radius.
        stop_draws: a call, not `minimal`, leaves an image once its result reaches the goal under `eot` and so many more
            fresh draws after a run; 0: never.
        batch_size: rows (images times draws) of one call of the model, halved where memory runs out.
    """

    threat: Threat
    iterations: int = 100
    eot: int = 1
    target_classes: int = 9
    restarts: int = 1
    stop_draws: int = 0
    batch_size: int = 256

    @property
    def revision(self) -> int:
        """1 where runs beyond the third are made, whose keys were those of other purposes before version 0.2."""
        return int(self.restarts * max(self.target_classes, 1) > 3)

    def run(self, task: Task) -> Tensor:
        """The nearest points found, moved into the threat; where none was found, the image itself.

        `start` is where the first run begins.
        """
        return self._nearest(task, bounded=True)[0]

    def minimal(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        keys: Tensor | None = None,
        progress: Progress | None = None,
        *,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The nearest points in [0, 1] at which the goal is reached (for random models: of positive mean margin),
        whatever the threat's epsilon.

        Arguments and errors as for a call.

        Returns:
            (b, c, h, w), detached, and their distances (b,) in the threat's norm: 0 for images that need no change;
            infinite where no such point was found, and the image itself.
        """
        return self._attacked(partial(self._nearest, bounded=False), model, x, y, keys, progress, targets)

    def _nearest(self, task: Task, bounded: bool) -> tuple[Tensor, Tensor]:
        """Nearest points and distances; `bounded`: points moved into the threat, and images leave as soon as they reach
        the goal there.
        """
        x, keys = task.x, task.keys
        goal = task.expectation(self.eot, self.batch_size)
        clean = goal.loss(x, derive(keys, OfFAB.SEARCH), margin) > 0
        distance = torch.where(clean, 0.0, torch.inf).to(x.dtype)
        standing, towards = (~clean).nonzero().squeeze(1), [task.targets]
        if self.target_classes and task.targets is None and len(standing):
            towards = list(goal.likely(x, derive(keys, OfFAB.TARGETS), self.target_classes).unbind(1))
        runs = [(classes, restart) for classes in towards for restart in range(self.restarts)]

        def run(number: int, rows: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor]:
            classes, restart = runs[number]
            of_run, nearest, images = run_keys(keys, number, beside=OfFAB), earlier.clone(), x[rows]
            begin = self._begin(task, number, restart, of_run)
            step = _Step(self, task, goal, classes, rows, task.counted(number, len(runs), self.iterations))
            for points in step.walk(begin[rows], of_run[rows]):
                found, far = self._search(goal, points, images, keys[rows], rows)
                closer = far < distance[rows]
                nearest[closer], distance[rows[closer]] = found[closer], far[closer]
            if not (bounded and self.stop_draws):
                return nearest, torch.zeros_like(rows, dtype=torch.bool)
            points = self._within(goal, nearest, images, keys[rows], rows)
            stop = derive(of_run[rows], OfFABRun.STOP)
            return nearest, goal.success(points, stop, rows, self.eot + self.stop_draws) >= 1

        nearest = in_turn(run, len(runs), x, standing)
        if bounded:
            nearest = self._within(goal, nearest, x, keys, task.everything)
            wrong = clean.nonzero().squeeze(1)
            if len(wrong) and self.random(task.model, x):
                nearest[wrong] = self._strengthened(goal, x[wrong], keys[wrong], wrong)
        return nearest, distance

    def _begin(self, task: Task, number: int, restart: int, keys: Tensor) -> Tensor:
        if restart:
            draws = uniform(derive(keys, OfFABRun.START), tuple(task.x.shape[1:]), task.x.dtype)
            return self.threat.project(task.x + self.threat.random_start(draws) / 2, task.x)
        return task.x if number or task.start is None else task.start

    def _search(
        self, goal: Expectation, points: Tensor, x: Tensor, keys: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where the ray from each image through its point crosses the boundary, just beyond it, and its distance:
        infinite without a crossing.
        """

        def at(share: Tensor) -> Tensor:
            return (x + share[:, None, None, None] * (points - x)).clamp(0, 1)

        def wrong(share: Tensor) -> Tensor:
            return goal.loss(at(share), derive(keys, OfFAB.SEARCH), margin, rows) > 0

        low, high = x.new_zeros(len(x)), x.new_ones(len(x))
        inside = wrong(high)
        low, high = torch.where(inside, low, high), torch.where(inside, high, _REACH)
        found = inside | wrong(high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            beyond = wrong(middle)
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        return at(high), torch.where(found, self.threat.distance(at(high), x), torch.inf)

    def _within(self, goal: Expectation, nearest: Tensor, x: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        """The points moved into the threat; for random models, where that raises the mean margin, along their rays to
        its border.
        """
        inside = self.threat.project(nearest, x)
        if not self.random(goal.model, x):
            return inside
        share = self.threat.epsilon / self.threat.distance(nearest, x).clamp_min(torch.finfo(x.dtype).tiny)
        border = self.threat.project(x + share[:, None, None, None] * (nearest - x), x)
        return goal.choose([inside, border], derive(keys, OfFAB.SELECT), margin, rows)[0]

    def _strengthened(self, goal: Expectation, x: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        """Images that are wrong on average as they are, moved to the threat's border along the gradient of the mean
        margin where that raises it.
        """
        gradient, _, _ = goal.gradient(x, derive(keys, OfFAB.CLEAN), margin, rows)
        border = self.threat.project(
            x + self.threat.epsilon * self.threat.direction(gradient.nan_to_num(0.0, 0.0, 0.0)), x
        )
        return goal.choose([x, border], derive(keys, OfFAB.SELECT), margin, rows)[0]

    def random(self, model: nn.Module, x: Tensor) -> bool:
        """Whether answers are means over draws."""
        return is_random(model, x) or self.eot > 1


class _Step:
    """One run, towards `classes` where they are given, for the images at `rows`."""

    def __init__(
        self,
        attack: FAB,
        task: Task,
        goal: Expectation,
        classes: Tensor | None,
        rows: Tensor,
        report: Callable[[int], None],
    ):
        self.attack, self.task, self.goal, self.rows, self.report = attack, task, goal, rows, report
        any_wrong = task.targets is None
        self.loss: Loss = _difference if classes is not None and any_wrong else margin
        self.steered = Expectation(task.model, task.y, attack.eot, attack.batch_size, classes, any_wrong=any_wrong)

    def walk(self, current: Tensor, keys: Tensor) -> list[Tensor]:
        """Points for the final search: the nearest one on the wrong side; for random models also the last one and the
        mean of the second half.
        """
        threat, x, iterations = self.attack.threat, self.task.x[self.rows], self.attack.iterations
        nearest, shortest, total, last = x, x.new_full((len(x),), torch.inf), torch.zeros_like(x), x
        for step in range(iterations):
            of_step = derive(keys, OfFABRun.STEP, step)
            gradient, value, success = self.steered.gradient(current, of_step, self.loss, self.rows)
            self.task.gradients.see(gradient, self.rows, success)
            gradient, value = gradient.nan_to_num(0.0, 0.0, 0.0), value.nan_to_num(0.0, 0.0, 0.0)
            last = self._towards_the_boundary(x, current, gradient, value)
            far = threat.distance(last, x)
            wrong = self.goal.loss(last, derive(keys, OfFABRun.CHECK, step), margin, self.rows) > 0
            nearer = wrong & (far < shortest)
            nearest, shortest = where(nearer, last, nearest), torch.where(nearer, far, shortest)
            if step >= iterations // 2:
                total = total + last
            current = where(wrong, x + _BETA * (last - x), last)
            self.report(step + 1)
        if not self.attack.random(self.task.model, x):
            return [nearest]
        return [nearest, last, total / (iterations - iterations // 2)]

    def _towards_the_boundary(self, x: Tensor, current: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
        """Beyond the boundary of the linear function that has this value and gradient at `current`, drawn towards `x`
        (eq. 10).
        """
        threat = self.attack.threat
        here = onto_hyperplane(current, gradient, value, threat)
        there = onto_hyperplane(x, gradient, value + (gradient * (x - current)).sum((1, 2, 3)), threat)
        length, length_there = threat.distance(current + here, current), threat.distance(x + there, x)
        share = length / (length + length_there).clamp_min(torch.finfo(x.dtype).tiny)
        alpha = share.clamp_max(_ALPHA_MAX)[:, None, None, None]
        return ((1 - alpha) * (current + _ETA * here) + alpha * (x + _ETA * there)).clamp(0, 1)


def _difference(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """The target's logit minus the label's: its zero is the boundary between the two."""
    assert targets is not None
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
