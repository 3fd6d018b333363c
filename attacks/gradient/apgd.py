"""Auto-PGD (Croce & Hein 2020, arXiv 2003.01690, algorithm 1) on the expected loss of a random model."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.attack import Attack
from attacks.expectation import Expectation, is_random
from attacks.gradient.pgd import BadGradients, Progress
from attacks.inputs import check_inputs, check_integers_from_zero, check_positive_integers, check_start, check_targets
from attacks.losses import LOSSES, Loss, dlr, margin
from attacks.randomness import default_keys, mix, uniform
from attacks.threats import Threat

_START, _STEP, _STOP, _CHECK, _SELECT, _TARGETS = range(6)  # what the attack's draws are for
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
class APGD(Attack):
    """Gradient steps with momentum, whose size is halved, image by image, where the loss stops rising, and which then
    begin again at the best point.

    A deterministic model (see `attacks.expectation.is_random`, with `eot=1`) is attacked by the published algorithm,
    its published constants (momentum 0.75, rho = 0.75, first step 2 epsilon, checkpoints 0.22, 0.41, 0.57, ...), from a
    random point of the ball.

    For a random model each iterate's loss is a mean over fresh draws, and the largest of many such means belongs to a
    lucky iterate: better ones that follow do not exceed it, and at every checkpoint the published algorithm goes back
    to it. There, at a checkpoint, the best point so far, the iterate of largest mean loss since the last checkpoint,
    the newest iterate and the mean of the iterates since then are compared under fresh draws common to them. The winner
    is the best point; the step is halved by the share of rises, as published, or where the best point did not change.
    (Linf steps on a linear model with more noise than signal, 100 iterations of 8 draws: 95 % of the optimum, the
    published rules 77 %. Counting rises on common draws too changed nothing.) Checkpoints are at least 4 iterations
    apart there, so that comparisons cost at most one forward pass per gradient.

    At the end of each run the best point, the last iterate and the one misclassified by most draws (the latest of
    equals), and for random models the mean of the last iterates, are compared with the result of earlier runs (at first
    the image) by their mean margin over draws common to them all: the largest is returned.

    Args:
        threat: `Linf` or `L2`.
        iterations: gradients per run; a run also evaluates the model 4 times without gradient, for random models 6
            times and 4 times per checkpoint.
        eot: draws of the model per gradient and per comparison.
        loss: "ce", "margin" or "dlr"; default "dlr" with `target_classes`, else "ce".
        restarts: independent runs (for each target class).
        target_classes: with n > 0, APGD-T: runs towards each of the n wrong classes of largest mean logit in turn, of
            which there are at most all (the paper: 9). The goal remains any wrong class. "dlr" is the targeted margin
            where the model has fewer than 4 classes. Without effect where a call gives targets.
        stop_draws: an image leaves the attack, as it is, once all `eot` draws of a gradient and then so many fresh
            draws reach the goal; 0: never.
        batch_size: rows (images times draws) of one call of the model, halved where memory runs out.
    """

    threat: Threat
    iterations: int = 100
    eot: int = 1
    loss: str | None = None
    restarts: int = 1
    target_classes: int = 0
    stop_draws: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        check_positive_integers(self, "iterations", "eot", "restarts", "batch_size")
        check_integers_from_zero(self, "target_classes", "stop_draws")
        if self.loss is None:
            object.__setattr__(self, "loss", "dlr" if self.target_classes else "ce")
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is not one of {', '.join(LOSSES)}")

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
        """Adversarial images; arguments, result and errors as for `PGD`; `start` is where the first run begins."""
        check_inputs(x, y, keys)
        check_targets(targets, y)
        check_start(start, x, self.threat.distance, self.threat.epsilon)
        x, keys = x.detach(), default_keys(len(x), x.device) if keys is None else keys.to(x.device)
        goal = Expectation(model, y, self.eot, self.batch_size, targets)
        towards: list[Tensor | None] = [targets]
        if self.target_classes and targets is None:
            towards = list(goal.likely(x, mix(keys, _TARGETS), self.target_classes).unbind(1))
        random = is_random(model, x) or self.eot > 1
        runs = [(classes, restart) for classes in towards for restart in range(self.restarts)]
        result, standing = x.clone(), torch.arange(len(x), device=x.device)
        for number, (classes, _) in enumerate(runs):
            steered = Expectation(model, y, self.eot, self.batch_size, classes, any_wrong=targets is None)
            run = Run(self, steered, goal, random)
            run_keys = mix(keys, number)
            begin = start if number == 0 and start is not None else self._begin(x, run_keys)

            def report(step: int, number: int = number) -> None:
                if progress is not None:
                    progress(number * self.iterations + step, len(runs) * self.iterations)

            result[standing], broken = run(x, begin, run_keys, standing, result[standing], report)
            standing = standing[~broken]
            if not len(standing):
                break
        return result

    def _begin(self, x: Tensor, keys: Tensor) -> Tensor:
        return self.threat.project(
            x + self.threat.random_start(uniform(mix(keys, _START), tuple(x.shape[1:]), x.dtype)), x
        )


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


class Run:
    """One run of an `APGD`: `steered` has the loss's targets, `goal` those of the attack."""

    def __init__(self, attack: APGD, steered: Expectation, goal: Expectation, random: bool):
        self.attack = attack
        self.steered = steered
        self.goal = goal
        self.random = random
        self.loss: Loss = (
            _dlr_or_margin if attack.loss == "dlr" and attack.target_classes else LOSSES[attack.loss or "ce"]
        )

    def __call__(
        self, x: Tensor, begin: Tensor, keys: Tensor, standing: Tensor, earlier: Tensor, report: Callable[[int], None]
    ) -> tuple[Tensor, Tensor]:
        """Of the images at `standing`: the best points, `earlier` ones among them (n, c, h, w), and which left as
        broken (n,).
        """
        count = len(standing)
        found, broken = earlier.clone(), torch.zeros(count, dtype=torch.bool, device=x.device)
        position = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        position[standing] = torch.arange(count, device=x.device)
        s = self._initial(x, begin, keys, standing)
        gradients, checks = (
            BadGradients(len(x), x.device),
            [0, *checkpoints(self.attack.iterations, apart=4 if self.random else 1)],
        )
        since = 0
        for step in range(self.attack.iterations):
            gradient, loss, share = self.steered.gradient(s.current, mix(s.keys, _STEP, step), self.loss, s.rows)
            if self.attack.stop_draws:
                sure = share == 1
                sure[sure.clone()] = (
                    self.goal.success(
                        s.current[sure], mix(s.keys[sure], _STOP, step), s.rows[sure], self.attack.stop_draws
                    )
                    == 1
                )
                found[position[s.rows[sure]]], broken[position[s.rows[sure]]] = s.current[sure], True
                s, gradient, loss, share = s.only(~sure), gradient[~sure], loss[~sure], share[~sure]
                if not len(s.rows):
                    report(step + 1)
                    break
            gradients.see(gradient, s.rows, share)
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            self._record(s, gradient, loss, share)
            if step == 0:
                s.kept_gradient = gradient
            if step in checks[1:]:
                gradient = self._check(s, gradient, step - checks[checks.index(step) - 1], step)
                since = step
            if self.random:
                s.total, s.total_gradient = s.total + s.current, s.total_gradient + gradient
            self._move(s, gradient, 1.0 if step == 0 else _MOMENTUM)
            report(step + 1)
        gradients.warn(self.attack.iterations)
        if len(s.rows):
            candidates = [s.best, s.wrong, s.current]
            if self.random:
                mean = s.total / (self.attack.iterations - since)
                candidates += [s.kept, self.attack.threat.project(mean, s.x)]
            where = position[s.rows]
            found[where], _, _ = self.goal.choose([*candidates, earlier[where]], mix(s.keys, _SELECT), margin, s.rows)
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
            size=x.new_full((len(x), 1, 1, 1), 2 * self.attack.threat.epsilon),
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
            _where(loss > s.best_loss, s.current, s.best),
            _where(loss > s.best_loss, gradient, s.best_gradient),
        )
        s.best_loss = torch.where(loss > s.best_loss, loss, s.best_loss)
        s.wrong, s.share = _where(share >= s.share, s.current, s.wrong), torch.maximum(share, s.share)

    def _check(self, s: _State, gradient: Tensor, length: int, step: int) -> Tensor:
        """A checkpoint: halves steps and sends their images back to the best point; the gradients to go on with."""
        if self.random:
            mean, mean_gradient = self.attack.threat.project(s.total / length, s.x), s.total_gradient / length
            s.kept, which, loss = self.steered.choose(
                [s.kept, s.best, s.current, mean], mix(s.keys, _CHECK, step), self.loss, s.rows
            )
            choices = torch.stack([s.kept_gradient, s.best_gradient, gradient, mean_gradient])
            s.kept_gradient = choices[which, torch.arange(len(which), device=which.device)]
            s.best, s.best_gradient, s.best_loss = s.kept, s.kept_gradient, loss
            stuck = which == 0
            s.total, s.total_gradient = torch.zeros_like(s.x), torch.zeros_like(s.x)
        else:
            stuck = s.best_loss == s.checked
        halve = (s.rises < _RISES * length) | (stuck & ~s.halved)
        s.size = _where(halve, s.size / 2, s.size)
        s.current = _where(halve, s.best, s.current)
        s.loss = torch.where(halve, s.best_loss, s.loss)
        s.checked, s.halved, s.rises = s.best_loss, halve, torch.zeros_like(s.rises)
        return _where(halve, s.best_gradient, gradient)

    def _move(self, s: _State, gradient: Tensor, share: float) -> None:
        """The step of algorithm 1, lines 7 and 8."""
        threat = self.attack.threat
        ahead = threat.project(s.current + s.size * threat.direction(gradient), s.x)
        moved = threat.project(s.current + share * (ahead - s.current) + (1 - share) * (s.current - s.previous), s.x)
        s.previous, s.current = s.current, moved


def _dlr_or_margin(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    return (dlr if logits.shape[1] >= 4 else margin)(logits, labels, targets)


def _where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition[:, None, None, None], yes, no)
