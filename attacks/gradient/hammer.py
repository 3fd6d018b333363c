"""DiffHammer (Wang et al., NeurIPS 2024): expectation over those draws of a random model that one perturbation can
break together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.attack import Attack
from attacks.cost import add_cost
from attacks.expectation import Expectation, by_draw, is_random
from attacks.gradient.ascent import Climb
from attacks.inputs import also_called, check_choice, check_positive, check_positive_integers
from attacks.losses import LOSSES, Loss
from attacks.protocols import OffersStages
from attacks.randomness import draw_keys
from attacks.task import Task
from attacks.threats import Threat

Gradients = Literal["full", "grafted"]


@also_called(steps="iterations")
@dataclass(frozen=True)
class DiffHammer(Attack):
    """APGD along gradients that weight each draw by the probability that it is vulnerable together with the others.

    A plain mean over draws pulls in all directions at once: draws that cannot be broken, or only by another
    perturbation, cancel the gradients of those that share a vulnerability. Here, at every iteration (algorithm 1), with
    losses L_i and gradients g_i of `eot` draws, and sigma the logistic function:

    - E-step: the perturbation r* that breaks most draws, to first order, maximises sum_i sigma(L_i + (r* - r) g_i) over
      what the threat model allows (eq. 9). Draw i is vulnerable with probability q_i = sigma(L_i + (r* - r) g_i).
    - M-step: the gradient is sum_i q_i g_i, interpolated with that of the last iteration by t^-stepwise (stepwise EM).

    Differences from the paper:

    - r* is sought among the best responses to each single draw (eq. 11) and to the mean, improved by reweighting, so
      that it is never worse than the mean's; and among all that the threat allows around the image, the box of valid
      pixels included, not in a ball around the current point.
    - The weights are scaled to sum 1: they do not underflow while all draws are far from being broken.
    - The loss is the margin, whose logistic function is a probability of being misclassified; the paper names none.
    - Points are compared by the mean of sigma(margin) under draws common to them (see `APGD` for the control of steps),
      not by their mean margin, in which draws that cannot be broken would have a say.
    - No draw judges that the attack has seen; the paper takes its result from the draws of the next iteration.

    Args:
        threat: `Linf` or `L2`.
        iterations: gradients per run (published: 3 runs of 50, the later ones for images with less than half of the
            draws broken).
        eot: draws per iteration, published 10.
        gradients: "full", the gradient of every draw in the image, stronger in the paper's ablation; or "grafted" (eq.
            10), for models of two stages (see `attacks.protocols.OffersStages`): the E-step and the weighted sum take
            place in the purified images, and one representative draw (eq. 11) carries the sum back to the image, so
            that an iteration costs `eot` forward passes and one forward and backward pass, not `eot` of both.
        loss: "margin", "ce" or "dlr".
        sharpness: factor of the loss in sigma.
        em_steps: reweightings in the E-step.
        stepwise: exponent of the interpolation, in [0, 1]; 0 takes the new gradient alone.
        restarts: independent runs.
        stop_draws: an image leaves the attack, as it is, once all `eot` draws of a gradient and then so many fresh
            draws reach the goal; 0: never.
        batch_size: rows (images times draws) of one call of the model, halved where memory runs out.
    """

    threat: Threat
    iterations: int = 50
    eot: int = 10
    gradients: Gradients = "full"
    loss: str = "margin"
    sharpness: float = 1.0
    em_steps: int = 5
    stepwise: float = 0.5
    restarts: int = 1
    stop_draws: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_integers(self, "em_steps")
        check_choice(self, "gradients", get_args(Gradients))
        check_positive(self, "sharpness")
        if not 0 <= self.stepwise <= 1:
            raise ValueError(f"stepwise must lie in [0, 1], got {self.stepwise}")

    @property
    def needs(self) -> type | None:
        """As of `Attack`: two stages for "grafted" gradients."""
        return OffersStages if self.gradients == "grafted" else None

    @property
    def _named(self) -> str:
        return f'{type(self).__name__} with gradients="{self.gradients}"'

    def run(self, task: Task) -> Tensor:
        """As of `Attack`; `start` is where the first run begins."""
        selective = _Selective(self, task.model, task.x, task.y, task.targets)
        random = is_random(task.model, task.x) or self.eot > 1
        climb = Climb(self.threat, self.iterations, self.stop_draws, LOSSES[self.loss], random)
        return climb.restarted(task, selective, selective, self.restarts)


def vulnerability(
    losses: Tensor, gradients: Tensor, move: Callable[[Tensor], Tensor], em_steps: int
) -> tuple[Tensor, Tensor]:
    """The E-step, for n images by d draws.

    Args:
        losses: (d, n), positive where misclassified; NaN counts as out of reach.
        gradients: (d, n, c, h, w), of these losses.
        move: directions (n, c, h, w) -> the perturbations to go on with that follow them the most.
        em_steps: reweightings.

    Returns:
        (d, n): log of the probability that a draw is vulnerable; and (n,) int64: the draw whose own perturbation does
        the most harm to all.
    """
    flat, losses = gradients.flatten(2).nan_to_num(0.0, 0.0, 0.0), losses.nan_to_num(-torch.inf)

    def after(direction: Tensor) -> Tensor:
        """(d, n) log probabilities after the move along a direction (n, pixels)."""
        step = move(direction.reshape(gradients.shape[1:])).flatten(1)
        return F.logsigmoid(losses + torch.einsum("dnp,np->dn", flat, step))

    singles = torch.stack([after(direction) for direction in flat])
    harm, representative = singles.logsumexp(1).max(0)
    best = singles[representative, :, torch.arange(len(representative), device=losses.device)].T
    candidate = after(flat.mean(0))
    for _ in range(em_steps + 1):
        value = candidate.logsumexp(0)
        best, harm = torch.where(value > harm, candidate, best), torch.maximum(value, harm)
        candidate = after((_share(best)[:, :, None] * flat).sum(0))
    return best, representative


def _share(log_weights: Tensor) -> Tensor:
    """(d, n) weights of sum 1; none of any weight: equal ones."""
    return log_weights.nan_to_num(neginf=torch.finfo(log_weights.dtype).min).softmax(0)


class _Selective(Expectation):
    """Gradients from the draws that are vulnerable together, losses as the mean of sigma."""

    def __init__(self, attack: DiffHammer, model: nn.Module, x: Tensor, labels: Tensor, targets: Tensor | None):
        super().__init__(model, labels, attack.eot, attack.batch_size, targets)
        self.attack = attack
        self.x = x
        self.single = Expectation(model, labels, 1, attack.batch_size, targets)
        self.begin()

    def begin(self) -> None:
        """See `Expectation.begin`."""
        self.past = torch.zeros_like(self.x)
        self.iterations = torch.zeros(len(self.x), dtype=torch.int64, device=self.x.device)

    def gradient(
        self, x: Tensor, keys: Tensor, loss: Loss, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Expectation.gradient`, of the vulnerable draws; the loss is the mean of sigma(loss)."""
        rows = torch.arange(len(x), device=x.device) if rows is None else rows
        of_draws = torch.cat([draw_keys(keys, draw) for draw in range(self.draws)])
        compute = self._full if self.attack.gradients == "full" else self._grafted
        gradient, losses, success = compute(x, of_draws, loss, rows)
        self.iterations[rows] += 1
        new = (self.iterations[rows].to(x.dtype) ** -self.attack.stepwise)[:, None, None, None]
        gradient = new * gradient + (1 - new) * self.past[rows]
        self.past[rows] = gradient.nan_to_num(0.0, 0.0, 0.0)
        return gradient, (self.attack.sharpness * losses).sigmoid().mean(0), success.mean(0)

    def loss(self, x: Tensor, keys: Tensor, loss: Loss, rows: Tensor | None = None, draws: int | None = None) -> Tensor:
        """As `Expectation.loss`, of sigma(loss)."""
        return super().loss(
            x, keys, lambda *arguments: (self.attack.sharpness * loss(*arguments)).sigmoid(), rows, draws
        )

    def _full(self, x: Tensor, keys: Tensor, loss: Loss, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted gradient (n, c, h, w), and losses and successes (draws, n)."""
        found = self.single.gradient(x.repeat(self.draws, 1, 1, 1), keys, loss, rows.repeat(self.draws))
        gradients, losses, success = (by_draw(part, self.draws) for part in found)
        threat, clean = self.attack.threat, self.x[rows]

        def move(direction: Tensor) -> Tensor:
            return threat.project(clean + threat.epsilon * threat.direction(direction), clean) - x

        weights, _ = vulnerability(
            self.attack.sharpness * losses, self.attack.sharpness * gradients, move, self.attack.em_steps
        )
        return torch.einsum("dn,dnchw->nchw", _share(weights), gradients), losses, success

    def _grafted(self, x: Tensor, keys: Tensor, loss: Loss, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `_full`, approximately: the sum is taken over purified images, and one draw carries it back to the
        image.
        """
        n, stages = len(x), cast(OffersStages, self.model)
        images, rows = x.repeat(self.draws, 1, 1, 1), rows.repeat(self.draws)
        keys = draw_keys(keys, 0)  # what an `Expectation` of one draw makes of them

        def forth(part: slice, which: range) -> tuple[Tensor, Tensor, Tensor]:
            add_cost(part.stop - part.start, False)
            with torch.no_grad():
                purified = stages.purifier(images[part], keys[part])
            purified.requires_grad_()
            with torch.enable_grad():
                logits = stages.classifier(purified)
                self.check_logits(logits, len(purified))
                targets = None if self.targets is None else self.targets[rows[part]]
                losses = loss(logits, self.labels[rows[part]], targets)
                (gradients,) = torch.autograd.grad(losses.sum(), purified)
            return gradients, losses.detach().to(x.dtype), self._reached(logits, self.labels[rows[part]], targets)

        parts = zip(*(found for _, found in self._walk(len(images), 1, forth)), strict=True)
        gradients, losses, success = (by_draw(torch.cat(part), self.draws) for part in parts)
        attack = self.attack
        reach = attack.threat.epsilon
        weights, chosen = vulnerability(
            attack.sharpness * losses,
            attack.sharpness * gradients,
            lambda direction: reach * attack.threat.direction(direction),
            attack.em_steps,
        )
        total = torch.einsum("dn,dnchw->nchw", _share(weights), gradients)
        one_keys = by_draw(keys, self.draws)[chosen, torch.arange(n, device=x.device)]

        def back(part: slice, which: range) -> Tensor:
            inputs = x[part].detach().requires_grad_()
            add_cost(len(inputs), True)
            with torch.enable_grad():
                return torch.autograd.grad((stages.purifier(inputs, one_keys[part]) * total[part]).sum(), inputs)[0]

        return torch.cat([carried for _, carried in self._walk(n, 1, back)]), losses, success
