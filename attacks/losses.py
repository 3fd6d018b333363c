"""Per-image losses that an attack maximises: logits (b, classes), labels (b,) int64 -> (b,)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label]."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest wrong logit minus the true one (Carlini & Wagner 2017, arXiv 1608.04644, f_6): positive exactly where misclassified."""
    true = logits.gather(1, labels[:, None]).squeeze(1)
    wrong = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return wrong - true


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin}
