"""Auto-PGD (Croce & Hein 2020, arXiv 2003.01690, algorithm 1) on the expected loss of a random model."""

from dataclasses import dataclass

from torch import Tensor

from attacks.attack import Attack
from attacks.expectation import Expectation, is_random
from attacks.gradient.ascent import Climb
from attacks.inputs import also_called
from attacks.losses import LOSSES, Loss, dlr, margin
from attacks.randomness import OfAPGD, OfAscent, derive, run_keys
from attacks.task import Task
from attacks.threats import Threat


@also_called(steps="iterations")
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
        if self.loss is None:
            object.__setattr__(self, "loss", "dlr" if self.target_classes else "ce")
        super().__post_init__()

    @property
    def revision(self) -> int:
        """1 where runs beyond the fifth are made, whose keys were those of another purpose before version 0.2."""
        return int(self.restarts * max(self.target_classes, 1) > 5)

    def run(self, task: Task) -> Tensor:
        """As of `Attack`; `start` is where the first run begins."""
        goal = task.expectation(self.eot, self.batch_size)
        towards: list[Tensor | None] = [task.targets]
        if self.target_classes and task.targets is None:
            likely = goal.likely(task.x, derive(task.keys, OfAPGD.TARGETS), self.target_classes)
            towards = list(likely.unbind(1))
        random = is_random(task.model, task.x) or self.eot > 1
        steered = [
            Expectation(task.model, task.y, self.eot, self.batch_size, classes, any_wrong=task.targets is None)
            for classes in towards
            for _ in range(self.restarts)
        ]

        def keys(number: int) -> tuple[Tensor, Tensor]:
            of_run = run_keys(task.keys, number, beside=OfAPGD)
            return of_run, derive(of_run, OfAscent.START)

        climb = Climb(self.threat, self.iterations, self.stop_draws, self._loss(), random)
        return climb.run(task, goal, steered, keys)

    def _loss(self) -> Loss:
        if self.loss == "dlr" and self.target_classes:
            return _dlr_or_margin
        return LOSSES[self.loss or "ce"]


def _dlr_or_margin(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    return (dlr if logits.shape[1] >= 4 else margin)(logits, labels, targets)
