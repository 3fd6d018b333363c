"""Preprocessing as part of a model, so that an attack sees images in [0, 1]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Preprocessed(nn.Module):
    """A model behind its resize, centre crop and normalisation: images in [0, 1] -> what the model returns.
    Differentiable throughout.

    Images of `size` are only normalised. Others are resized and cropped as torchvision's transforms do it on tensors,
    which libraries' evaluation transforms are made of; a PIL image, which they more often get, is resized in 8 bits and
    differs by rounding.

    Args:
        model: takes normalised images.
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].
        size: (height, width) that the model takes; None: images of any size are only normalised.
        resize: what images of other sizes are resized to before the crop: the length of the shorter side, or (height,
            width), which may change their proportions. At least `size`, the default.
        interpolation: "bilinear" or "bicubic".
        antialias: low-pass before shrinking.

    Raises:
        ValueError: an argument that cannot be, at construction.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None = None,
        resize: int | tuple[int, int] | None = None,
        interpolation: str = "bilinear",
        antialias: bool = True,
    ):
        super().__init__()
        if len(mean) != len(std) or not len(mean) or not all(s > 0 for s in std):
            raise ValueError(
                f"mean and std must have one entry a channel, std positive; got mean={tuple(mean)}, std={tuple(std)}"
            )
        if interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f'interpolation must be "bilinear" or "bicubic", got {interpolation!r}')
        if size is None and resize is not None:
            raise ValueError(f"resize={resize} needs the size of the crop that follows")
        if size is not None and resize is not None:
            smallest = (resize, resize) if isinstance(resize, int) else resize
            if smallest[0] < size[0] or smallest[1] < size[1]:
                raise ValueError(f"resize={resize} is less than the crop, size={size}")
        self.model = model
        self.size = size
        self.resize = resize if resize is not None or size is None else size if size[0] != size[1] else size[0]
        self.interpolation = interpolation
        self.antialias = antialias
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, c, h, w), floating point, in [0, 1]. Raises ValueError for another shape or number of channels."""
        if x.ndim != 4 or x.shape[1] != len(self.mean):
            raise ValueError(f"x must be images of shape (b, {len(self.mean)}, h, w), got {tuple(x.shape)}")
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            x = _centre(self._resized(x), self.size)
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits

    def _resized(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        if isinstance(self.resize, int):
            # Multiplied before divided, and cut: a float ratio would round some lengths to the next integer.
            target: tuple[int, ...] = (
                (self.resize, int(self.resize * w / h)) if h <= w else (int(self.resize * h / w), self.resize)
            )
        else:
            assert self.resize is not None  # there is a size, and with it a resize
            target = self.resize
        return (
            x
            if (h, w) == target
            else F.interpolate(x, size=target, mode=self.interpolation, align_corners=False, antialias=self.antialias)
        )

    def extra_repr(self) -> str:
        mean, std = self.mean.flatten().tolist(), self.std.flatten().tolist()
        return (
            f"mean={mean}, std={std}, size={self.size}, resize={self.resize}, interpolation={self.interpolation!r},"
            f" antialias={self.antialias}"
        )


def _centre(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle (h, w) of images; an odd margin is rounded as Python rounds, to even, which is torchvision's
    choice.
    """
    top, left = (round((have - want) / 2) for have, want in zip(x.shape[2:], size, strict=True))
    return x[..., top : top + size[0], left : left + size[1]]
