"""What every classifier must give: finite logits."""

import warnings

import torch
from torch import Tensor, nn


@torch.no_grad()
def check_logits(model: nn.Module, images: Tensor) -> Tensor:
    """The logits (b, classes) of `images` (b, c, h, w), checked.

    Warns (UserWarning) where the model seems to return probabilities: losses on logits then take a softmax of a
    softmax, and gradients vanish.

    Raises:
        ValueError: another shape than (b, classes) with two classes or more, or NaN or infinity.
    """
    logits = model(images)
    if not isinstance(logits, Tensor):
        raise ValueError(f"the classifier must return a tensor of logits (b, classes), got {type(logits).__name__}")
    if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        raise ValueError(
            f"the classifier must return logits of shape ({len(images)}, classes), at least two classes, got"
            f" {tuple(logits.shape)}"
        )
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise ValueError(
            f"the classifier returns NaN or infinity for {bad} of {len(images)} images in [{float(images.min()):g},"
            f" {float(images.max()):g}]"
        )
    if ((logits >= 0) & (logits <= 1)).all() and ((logits.sum(1) - 1).abs() < 1e-4).all():
        warnings.warn(
            "the classifier seems to return probabilities; attacks need logits, the values before the softmax",
            stacklevel=2,
        )
    return logits
