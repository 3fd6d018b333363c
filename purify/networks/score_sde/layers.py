"""The layers of score_sde's networks."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify.networks import fir

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "swish": F.silu,
    "relu": F.relu,
    "elu": F.elu,
    "lrelu": lambda x: F.leaky_relu(x, 0.2),
}

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def conv3x3(inputs: int, outputs: int, scale: float = 1.0) -> nn.Conv2d:
    return _scaled(nn.Conv2d(inputs, outputs, 3, padding=1), scale)


def conv1x1(inputs: int, outputs: int) -> nn.Conv2d:
    return _scaled(nn.Conv2d(inputs, outputs, 1))


def dense(inputs: int, outputs: int) -> nn.Linear:
    return _scaled(nn.Linear(inputs, outputs))


def _scaled(layer: _Layer, scale: float = 1.0) -> _Layer:
    """DDPM's initial weights: uniform, variance scale / (mean of fan-in and fan-out); bias 0."""
    _init_uniform(layer.weight, scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _init_uniform(weight: Tensor, scale: float) -> None:
    nn.init.xavier_uniform_(weight, gain=math.sqrt(max(scale, 1e-10)))


class FourierEmbedding(nn.Module):
    """Sines and cosines of log(sigma) at fixed random frequencies."""

    def __init__(self, channels: int, scale: float):
        super().__init__()
        self.W = nn.Parameter(torch.randn(channels) * scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        # in this order: float32 rounding of large angles shows in the output
        angles = x[:, None] * self.W * 2 * math.pi
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def positional_embedding(labels: Tensor, channels: int) -> Tensor:
    """(b,) -> (b, channels): sines, then cosines, at frequencies from 1 down to 1/10000 (Vaswani et al. 2017, as in
    DDPM).
    """
    half = channels // 2
    frequencies = torch.exp(
        -math.log(10000.0) / (half - 1) * torch.arange(half, dtype=labels.dtype, device=labels.device)
    )
    angles = labels[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, channels % 2))


class NIN(nn.Module):
    """A linear map of the channels at every pixel ("network in network")."""

    def __init__(self, inputs: int, outputs: int, scale: float = 0.1):
        super().__init__()
        self.W = nn.Parameter(torch.empty(inputs, outputs))
        self.b = nn.Parameter(torch.zeros(outputs))
        _init_uniform(self.W, scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.W.T[:, :, None, None], self.b)


class Attention(nn.Module):
    """Single-head self-attention over all pixels."""

    def __init__(self, channels: int, rescale: bool, scale: float):
        super().__init__()
        self.GroupNorm_0 = group_norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2 = NIN(channels, channels), NIN(channels, channels), NIN(channels, channels)
        self.NIN_3 = NIN(channels, channels, scale)
        self.rescale = rescale

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.NIN_0, self.NIN_1, self.NIN_2))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return joined(x, self.NIN_3(h), self.rescale)


def joined(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
    """x + h, with `rescale` over sqrt(2), which keeps the variance of independent terms."""
    return (x + h) / math.sqrt(2.0) if rescale else x + h


class Resample(nn.Module):
    """Up or down by 2, by FIR filter or plainly, with or without a 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int, up: bool, convolve: bool, taps: tuple[float, ...] | None):
        super().__init__()
        self.up, self.convolve, self.taps = up, convolve, taps
        if convolve and taps:
            self.Conv2d_0 = _scaled(nn.Conv2d(inputs, outputs, 3))
        elif convolve:
            self.Conv_0 = conv3x3(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if not self.convolve:
            return resampled(x, self.up, self.taps)
        if self.taps:
            resample = fir.upsample_convolve if self.up else fir.convolve_downsample
            x, bias = resample(x, self.Conv2d_0.weight, self.taps), self.Conv2d_0.bias
            return x if bias is None else x + bias[:, None, None]
        if not self.up:  # padded below and to the right only, as TensorFlow does
            return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.Conv_0.weight, self.Conv_0.bias, stride=2)
        x = self.Conv_0(resampled(x, self.up, None))
        return x


def resampled(x: Tensor, up: bool, taps: tuple[float, ...] | None) -> Tensor:
    if taps:
        return fir.upsample(x, taps) if up else fir.downsample(x, taps)
    return F.interpolate(x, scale_factor=2, mode="nearest") if up else F.avg_pool2d(x, 2)


class Settings:
    """The part of the official configuration that blocks need."""

    def __init__(self, model: dict[str, Any]):
        self.activation = ACTIVATIONS[model["nonlinearity"].lower()]
        self.rescale = bool(model["skip_rescale"])
        self.taps = tuple(float(tap) for tap in model["fir_kernel"]) if model["fir"] else None
        self.conditional = bool(model["conditional"])
        self.embedding = 4 * model["nf"]
        self.dropout = model["dropout"]
        self.init_scale = model["init_scale"]


class ResidualBlock(nn.Module):
    """Either official residual block. "ddpm" never resamples and projects its shortcut by a `NIN`; "biggan" may
    resample inside.
    """

    def __init__(self, kind: str, inputs: int, outputs: int, settings: Settings, resample: str | None = None):
        super().__init__()
        self.activation, self.rescale = settings.activation, settings.rescale
        self.resample, self.taps = resample, settings.taps
        self.GroupNorm_0 = group_norm(inputs)
        self.Conv_0 = conv3x3(inputs, outputs)
        if settings.conditional:
            self.Dense_0 = dense(settings.embedding, outputs)
        self.GroupNorm_1 = group_norm(outputs)
        self.Dropout_0 = nn.Dropout(settings.dropout)
        self.Conv_1 = conv3x3(outputs, outputs, settings.init_scale)
        self.shortcut: str | None = None  # the layer's name, which tells the two kinds apart in checkpoints
        if kind == "biggan" and (inputs != outputs or resample):
            self.shortcut = "Conv_2"
            self.Conv_2 = conv1x1(inputs, outputs)
        elif inputs != outputs:
            self.shortcut = "NIN_0"
            self.NIN_0 = NIN(inputs, outputs)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.activation(self.GroupNorm_0(x))
        if self.resample:
            h, x = (resampled(part, self.resample == "up", self.taps) for part in (h, x))
        h = self.Conv_0(h)
        if embedding is not None:
            h = h + self.Dense_0(self.activation(embedding))[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(self.activation(self.GroupNorm_1(h))))
        if self.shortcut:
            x = getattr(self, self.shortcut)(x)
        return joined(x, h, self.rescale)


class Combine(nn.Module):
    """Adds or appends the input pyramid to the features."""

    def __init__(self, inputs: int, outputs: int, method: str):
        super().__init__()
        self.Conv_0 = conv1x1(inputs, outputs)
        self.method = method

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.cat([self.Conv_0(x), h], dim=1) if self.method == "cat" else self.Conv_0(x) + h
