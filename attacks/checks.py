"""Checks of an attack's inputs, made once a call, before any work."""

import torch
from torch import Tensor


def check_inputs(x: Tensor, y: Tensor, keys: Tensor | None = None) -> None:
    """Raises ValueError unless `x` is (b, c, h, w) finite in [0, 1], `y` (b,) non-negative int64 and `keys` (b,) int64 or None."""
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x must be floating-point images of shape (b, c, h, w), got {x.dtype} of shape {tuple(x.shape)}")
    if not len(x):
        raise ValueError("x holds no images")
    if not x.isfinite().all():
        raise ValueError(f"x holds NaN or infinity in {int((~x.isfinite()).flatten(1).any(1).sum())} of {len(x)} images")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        raise ValueError(f"x must lie in [0, 1], got values in [{low:g}, {high:g}]")
    if y.shape != (len(x),) or y.dtype != torch.int64:
        raise ValueError(f"y must be int64 labels of shape ({len(x)},), got {y.dtype} of shape {tuple(y.shape)}")
    if y.device != x.device:
        raise ValueError(f"x and y must be on the same device, got {x.device} and {y.device}")
    if int(y.min()) < 0:
        raise ValueError(f"y must hold class indices from 0, got {int(y.min())}")
    if keys is not None and (keys.shape != y.shape or keys.dtype != torch.int64):
        raise ValueError(f"keys must be int64 of shape ({len(x)},), got {keys.dtype} of shape {tuple(keys.shape)}")
