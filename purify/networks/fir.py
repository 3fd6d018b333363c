"""Resampling by a factor of 2 with a separable FIR filter, as StyleGAN2 (Karras et al. 2020, arXiv 1912.04958) and
score_sde's networks do it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def _filtered(x: Tensor, taps: tuple[float, ...], gain: float, pad: tuple[int, int], stride: int = 1) -> Tensor:
    """Every channel of `x` convolved with the outer product of `taps`, normalised to sum `gain`; `pad` zeros before and
    after each axis.
    """
    line = torch.tensor(taps, dtype=x.dtype, device=x.device)
    kernel = torch.outer(line, line)
    kernel = (kernel * (gain / kernel.sum())).flip(0, 1).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, (*pad, *pad)), kernel, stride=stride, groups=x.shape[1])


def upsample(x: Tensor, taps: tuple[float, ...]) -> Tensor:
    """(b, c, h, w) -> (b, c, 2h, 2w): zeros between the pixels, then the filter with gain 4."""
    b, c, h, w = x.shape
    spread = x.new_zeros(b, c, 2 * h, 2 * w)
    spread[:, :, ::2, ::2] = x
    excess = len(taps) - 2
    return _filtered(spread, taps, 4.0, ((excess + 1) // 2 + 1, excess // 2))


def downsample(x: Tensor, taps: tuple[float, ...]) -> Tensor:
    """(b, c, 2h, 2w) -> (b, c, h, w): the filter, then every other pixel."""
    excess = len(taps) - 2
    return _filtered(x, taps, 1.0, ((excess + 1) // 2, excess // 2), stride=2)


def upsample_convolve(x: Tensor, weight: Tensor, taps: tuple[float, ...]) -> Tensor:
    """(b, c, h, w) -> (b, c', 2h, 2w): a transposed convolution of stride 2 with `weight` (c', c, k, k), then the
    filter with gain 4.
    """
    excess = len(taps) - 2 - (weight.shape[2] - 1)
    # A transposed convolution mirrors its kernel; mirrored once more, it is a convolution of the image with zeros in
    # between.
    spread = F.conv_transpose2d(x, weight.flip(2, 3).transpose(0, 1), stride=2)
    return _filtered(spread, taps, 4.0, ((excess + 1) // 2 + 1, excess // 2 + 1))


def convolve_downsample(x: Tensor, weight: Tensor, taps: tuple[float, ...]) -> Tensor:
    """(b, c, 2h, 2w) -> (b, c', h, w): the filter, then a convolution of stride 2 with `weight` (c', c, k, k)."""
    excess = len(taps) - 2 + (weight.shape[2] - 1)
    return F.conv2d(_filtered(x, taps, 1.0, ((excess + 1) // 2, excess // 2)), weight, stride=2)
