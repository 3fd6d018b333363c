"""The layers of EDM's U-Nets."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PositionalEmbedding(nn.Module):
    """Cosines, then sines, at frequencies from 1 down to 1/10000 (`endpoint`: reaching it)."""

    def __init__(self, channels: int, endpoint: bool = False):
        super().__init__()
        self.count, self.endpoint = channels // 2, endpoint

    def forward(self, labels: Tensor) -> Tensor:
        exponents = torch.arange(self.count, dtype=labels.dtype, device=labels.device) / (self.count - self.endpoint)
        angles = labels[:, None] * (1 / 10000) ** exponents
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines, then sines, at fixed random frequencies."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0):
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, labels: Tensor) -> Tensor:
        angles = labels[:, None] * (2 * math.pi * self.freqs).to(labels.dtype)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Conv2d(nn.Module):
    """A convolution with a resampling FIR filter before it, or around it where `fused`; kernel 0 only resamples."""

    weight: Tensor | None
    bias: Tensor | None
    resample_filter: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        up: bool = False,
        down: bool = False,
        taps: tuple[float, ...] = (1, 1),
        fused: bool = False,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.up, self.down, self.fused = inputs, outputs, up, down, fused
        self.weight = self.bias = None
        if kernel:
            layer = nn.Conv2d(inputs, outputs, kernel)
            self.weight, self.bias = layer.weight, layer.bias
        if up or down:
            line = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", (torch.outer(line, line) / line.sum().square())[None, None])

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return self._upsampled(x) if self.up else self._downsampled(x) if self.down else x
        edge, pad = self._edge(), self.weight.shape[2] // 2
        if self.fused and self.up:
            x, pad = self._upsampled(x, max(edge - pad, 0)), max(pad - edge, 0)
        elif self.fused and self.down:
            x = self._downsampled(F.conv2d(x, self.weight, padding=pad + edge), 0)
            return x if self.bias is None else x + self.bias[:, None, None]
        elif self.up or self.down:
            x = self._upsampled(x) if self.up else self._downsampled(x)
        return F.conv2d(x, self.weight, self.bias, padding=pad)

    def _upsampled(self, x: Tensor, padding: int | None = None) -> Tensor:
        padding = self._edge() if padding is None else padding
        return F.conv_transpose2d(x, self._filter(x, 4.0), groups=x.shape[1], stride=2, padding=padding)

    def _downsampled(self, x: Tensor, padding: int | None = None) -> Tensor:
        padding = self._edge() if padding is None else padding
        return F.conv2d(x, self._filter(x), groups=x.shape[1], stride=2, padding=padding)

    def _edge(self) -> int:
        """Pixels of the filter on one side of an output pixel."""
        return (self.resample_filter.shape[2] - 1) // 2 if self.up or self.down else 0

    def _filter(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return (gain * self.resample_filter).to(x.dtype).expand(x.shape[1], 1, -1, -1)


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


class UNetBlock(nn.Module):
    """Two 3x3 convolutions, resampling in the first, the embedding added or as scale and shift, attention after them
    where `heads` > 0.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        up: bool = False,
        down: bool = False,
        heads: int = 0,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        taps: tuple[float, ...] = (1, 1),
        project_resampled: bool = False,
        adaptive_scale: bool = True,
    ):
        super().__init__()
        self.in_channels, self.out_channels = inputs, outputs
        self.heads, self.dropout, self.skip_scale, self.adaptive_scale = heads, dropout, skip_scale, adaptive_scale
        self.norm0 = group_norm(inputs, eps)
        self.conv0 = Conv2d(inputs, outputs, 3, up, down, taps)
        self.affine = nn.Linear(embedding, 2 * outputs if adaptive_scale else outputs)
        self.norm1 = group_norm(outputs, eps)
        self.conv1 = Conv2d(outputs, outputs, 3)
        self.skip: Conv2d | None = None
        if inputs != outputs or up or down:
            self.skip = Conv2d(inputs, outputs, 1 if project_resampled or inputs != outputs else 0, up, down, taps)
        if heads:
            self.norm2 = group_norm(outputs, eps)
            self.qkv = Conv2d(outputs, 3 * outputs, 1)
            self.proj = Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        modulation = self.affine(embedding)[:, :, None, None]
        if self.adaptive_scale:
            scale, shift = modulation.chunk(2, dim=1)
            h = F.silu(self.norm1(h) * (scale + 1) + shift)
        else:
            h = F.silu(self.norm1(h + modulation))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.heads:
            b, c, height, width = x.shape
            # The channels of a head interleave q, k and v.
            q, k, v = self.qkv(self.norm2(x)).reshape(b, self.heads, c // self.heads, 3, -1).transpose(2, 4).unbind(3)
            a = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, height, width)
            x = (self.proj(a) + x) * self.skip_scale
        return x
