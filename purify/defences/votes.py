"""The vote of several draws."""

import torch
from torch import Tensor

NO_CLASS = -1
"""The label that stands for none, wherever labels are predicted: it equals no true label."""

TIE = NO_CLASS
"""What a vote gives where no class has the most votes."""


def plurality(labels: Tensor) -> Tensor:
    """The most frequent label of each row, (b, votes) int64 -> (b,) int64, or `TIE`. Labels are at least 0, or
    `NO_CLASS`, which is counted like a class.
    """
    counts = torch.zeros(len(labels), int(labels.max()) + 1 - NO_CLASS, dtype=torch.int64, device=labels.device)
    counts.scatter_add_(1, labels - NO_CLASS, torch.ones_like(labels))
    most, winner = counts.max(1)
    return torch.where((counts == most[:, None]).sum(1) == 1, winner + NO_CLASS, TIE)
