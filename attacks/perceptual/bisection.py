"""How far a change may go before a distance that has no formula forbids it."""

from collections.abc import Callable

import torch
from torch import Tensor


def largest_factor(allowed: Callable[[Tensor], Tensor], count: int, like: Tensor, halvings: int = 16) -> Tensor:
    """(count,): factors in [0, 1] at which `allowed(factors)` (count,) bool holds: 1 where it does, else by bisection;
    0 is taken to be allowed.
    """
    low, high = like.new_zeros(count), like.new_ones(count)
    whole = allowed(high)
    for _ in range(0 if whole.all() else halvings):
        middle = (low + high) / 2
        inside = allowed(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return torch.where(whole, torch.ones_like(low), low)
