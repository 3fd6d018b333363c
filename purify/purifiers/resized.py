"""A purifier at another image size than the classifier's."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify.purifiers.base import Purifier, Trajectory
from purify.score.model import ScoreModel


class Resized(nn.Module):
    """Resizes images to the purifier's size and the purified ones back, bilinearly, as DiffPure does on ImageNet (224
    -> 256 -> 224).

    Takes a purifier's place in a `DefendedClassifier`; gradients pass through both resizes.

    Args:
        purifier: what runs at `size`.
        size: (height, width) of its images.
        antialias: low-pass before shrinking. The published code does not.
    """

    def __init__(self, purifier: Purifier, size: tuple[int, int], antialias: bool = False):
        super().__init__()
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size must be (height, width), got {size}")
        self.purifier = purifier
        self.size = tuple(size)
        self.antialias = antialias

    @property
    def score(self) -> ScoreModel:
        """The purifier's score model."""
        return self.purifier.score

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """See `Purifier.forward`; `x` (b, c, h, w) of any size."""
        return self._resize(self.purifier(self._to_size(x), keys), x.shape[2:])

    def trajectory(self, x: Tensor, keys: Tensor | None = None, points: int = 4, estimates: bool = False) -> Trajectory:
        """See `Purifier.trajectory`; states and noised images have the purifier's size."""
        inside = self.purifier.trajectory(self._to_size(x), keys, points, estimates)
        clean = (
            None
            if inside.estimates is None
            else torch.stack([self._resize(images, x.shape[2:]) for images in inside.estimates])
        )
        return inside._replace(result=self._resize(inside.result, x.shape[2:]), estimates=clean)

    def _to_size(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"x must be images of shape (b, c, h, w), got {tuple(x.shape)}")
        return self._resize(x, self.size)

    def _resize(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False, antialias=self.antialias)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.purifier!r}, {self.extra_repr()})"

    def extra_repr(self) -> str:
        return f"size={self.size}, antialias={self.antialias}"
