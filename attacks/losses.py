"""Per-image losses that an attack maximises: logits (b, classes), labels (b,) int64 and, for targeted attacks, targets
(b,) int64 -> (b,).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """-log softmax(logits)[label]; targeted: log softmax(logits)[target]."""
    if targets is not None:
        return -F.cross_entropy(logits, targets, reduction="none")
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Largest wrong logit minus the true one (Carlini & Wagner 2017, arXiv 1608.04644, f_6): positive exactly where
    misclassified.

    Targeted: the target's logit minus the largest other one, positive exactly where the target is predicted.
    """
    of = labels if targets is None else targets
    own = _pick(logits, of)
    others = logits.scatter(1, of[:, None], -torch.inf).amax(1)
    return others - own if targets is None else own - others


def dlr(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, arXiv 2003.01690, eq. 6): the margin over that of the first and
    the third largest logit.

    Targeted (eq. 7): (z_target - z_label) / (z_1st - (z_3rd + z_4th) / 2). Unlike cross-entropy it does not change with
    the scale of the logits.

    Raises:
        ValueError: fewer than 3 classes, or 4 where targeted.
    """
    needed = 3 if targets is None else 4
    if logits.shape[1] < needed:
        raise ValueError(
            f'loss="dlr" needs at least {needed} classes{" when targeted" if targets is not None else ""}, got'
            f' {logits.shape[1]}: use "margin"'
        )
    largest = logits.topk(needed, dim=1).values
    if targets is not None:
        return (_pick(logits, targets) - _pick(logits, labels)) / (
            largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
        ).clamp_min(1e-12)
    return margin(logits, labels) / (largest[:, 0] - largest[:, 2]).clamp_min(1e-12)


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
