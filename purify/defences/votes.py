"""The vote of several draws."""

import torch
from torch import Tensor

TIE = -1
"""The label that a vote gives where no class has the most votes: it equals no true label."""


def plurality(labels: Tensor) -> Tensor:
    """The most frequent label of each row, (b, votes) int64 -> (b,) int64, or `TIE`. Labels are at least 0."""
    counts = torch.zeros(len(labels), int(labels.max()) + 1, dtype=torch.int64, device=labels.device)
    counts.scatter_add_(1, labels, torch.ones_like(labels))
    most, winner = counts.max(1)
    return torch.where((counts == most[:, None]).sum(1) == 1, winner, TIE)
