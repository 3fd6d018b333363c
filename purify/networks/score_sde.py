"""NCSN++ and DDPM++, the networks of score_sde (Song et al. 2021, arXiv 2011.13456, appendix H), under their official
parameter names.

The official implementation keeps its layers in one list, `all_modules`, in the order in which they are built;
checkpoints carry that numbering, so the layers are built in the same order here, and the forward pass takes them off
the list in that order.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify.networks import fir

_ACTIVATIONS = {"swish": F.silu, "relu": F.relu, "elu": F.elu, "lrelu": lambda x: F.leaky_relu(x, 0.2)}


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def _conv3x3(inputs: int, outputs: int, scale: float = 1.0) -> nn.Conv2d:
    return _scaled(nn.Conv2d(inputs, outputs, 3, padding=1), scale)


def _conv1x1(inputs: int, outputs: int) -> nn.Conv2d:
    return _scaled(nn.Conv2d(inputs, outputs, 1))


def _dense(inputs: int, outputs: int) -> nn.Linear:
    return _scaled(nn.Linear(inputs, outputs))


def _scaled(layer: Any, scale: float = 1.0) -> Any:
    """DDPM's initial weights: uniform, variance scale / (mean of fan-in and fan-out); bias 0."""
    _init_uniform(layer.weight, scale)
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
        self.GroupNorm_0 = _group_norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2 = NIN(channels, channels), NIN(channels, channels), NIN(channels, channels)
        self.NIN_3 = NIN(channels, channels, scale)
        self.rescale = rescale

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.NIN_0, self.NIN_1, self.NIN_2))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return _joined(x, self.NIN_3(h), self.rescale)


def _joined(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
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
            self.Conv_0 = _conv3x3(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.taps and self.convolve:
            resample = fir.upsample_convolve if self.up else fir.convolve_downsample
            return resample(x, self.Conv2d_0.weight, self.taps) + self.Conv2d_0.bias[:, None, None]
        if self.taps:
            return _resampled(x, self.up, self.taps)
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            return self.Conv_0(x) if self.convolve else x
        if self.convolve:  # padded below and to the right only, as TensorFlow does
            return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.Conv_0.weight, self.Conv_0.bias, stride=2)
        return F.avg_pool2d(x, 2)


def _resampled(x: Tensor, up: bool, taps: tuple[float, ...] | None) -> Tensor:
    if taps:
        return fir.upsample(x, taps) if up else fir.downsample(x, taps)
    return F.interpolate(x, scale_factor=2, mode="nearest") if up else F.avg_pool2d(x, 2)


class ResidualBlock(nn.Module):
    """Either official residual block. "ddpm" never resamples and projects its shortcut by a `NIN`; "biggan" may
    resample inside.
    """

    def __init__(self, kind: str, inputs: int, outputs: int, settings: "_Settings", resample: str | None = None):
        super().__init__()
        self.activation, self.rescale, self.resample, self.taps = (
            settings.activation,
            settings.rescale,
            resample,
            settings.taps,
        )
        self.GroupNorm_0 = _group_norm(inputs)
        self.Conv_0 = _conv3x3(inputs, outputs)
        if settings.conditional:
            self.Dense_0 = _dense(settings.embedding, outputs)
        self.GroupNorm_1 = _group_norm(outputs)
        self.Dropout_0 = nn.Dropout(settings.dropout)
        self.Conv_1 = _conv3x3(outputs, outputs, settings.init_scale)
        self.shortcut = None
        if kind == "biggan" and (inputs != outputs or resample):
            self.shortcut = "Conv_2"
            self.Conv_2 = _conv1x1(inputs, outputs)
        elif inputs != outputs:
            self.shortcut = "NIN_0"
            self.NIN_0 = NIN(inputs, outputs)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.activation(self.GroupNorm_0(x))
        if self.resample:
            h, x = (_resampled(part, self.resample == "up", self.taps) for part in (h, x))
        h = self.Conv_0(h)
        if embedding is not None:
            h = h + self.Dense_0(self.activation(embedding))[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(self.activation(self.GroupNorm_1(h))))
        if self.shortcut:
            x = getattr(self, self.shortcut)(x)
        return _joined(x, h, self.rescale)


class Combine(nn.Module):
    """Adds or appends the input pyramid to the features."""

    def __init__(self, inputs: int, outputs: int, method: str):
        super().__init__()
        self.Conv_0 = _conv1x1(inputs, outputs)
        self.method = method

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.cat([self.Conv_0(x), h], dim=1) if self.method == "cat" else self.Conv_0(x) + h


class _Settings:
    """The part of the official configuration that blocks need."""

    def __init__(self, model: dict[str, Any]):
        self.activation = _ACTIVATIONS[model["nonlinearity"].lower()]
        self.rescale = bool(model["skip_rescale"])
        self.taps = tuple(float(tap) for tap in model["fir_kernel"]) if model["fir"] else None
        self.conditional = bool(model["conditional"])
        self.embedding = 4 * model["nf"]
        self.dropout = model["dropout"]
        self.init_scale = model["init_scale"]


class NCSNpp(nn.Module):
    """NCSN++ (VE) and DDPM++ (VP, sub-VP): one class, as its configuration says.

    Args:
        data: official `config.data`: image_size, num_channels, centered.
        model: official `config.model`.
        training: official `config.training`, not used by the network.
    """

    def __init__(self, data: dict[str, Any], model: dict[str, Any], training: dict[str, Any] | None = None):
        super().__init__()
        del training
        _check_options(model)
        self.settings = settings = _Settings(model)
        self.nf, self.blocks, self.kind = model["nf"], model["num_res_blocks"], model["resblock_type"].lower()
        self.progressive, self.progressive_input = model["progressive"].lower(), model["progressive_input"].lower()
        self.embedding_type, self.scale_by_sigma = model["embedding_type"].lower(), bool(model["scale_by_sigma"])
        self.attention_resolutions, self.centered = tuple(model["attn_resolutions"]), bool(data["centered"])
        self.levels = len(model["ch_mult"])
        self.resolutions = [data["image_size"] // 2**level for level in range(self.levels)]
        self.size_multiple = 2 ** (self.levels - 1)
        sigmas = np.exp(np.linspace(np.log(model["sigma_max"]), np.log(model["sigma_min"]), model["num_scales"]))
        self.register_buffer("sigmas", torch.tensor(sigmas, dtype=torch.float32))
        self.all_modules = nn.ModuleList(self._layers(data["num_channels"], model, settings))

    def _layers(self, image_channels: int, model: dict[str, Any], settings: _Settings) -> Iterator[nn.Module]:
        nf, widths = self.nf, [self.nf * multiplier for multiplier in model["ch_mult"]]
        if self.embedding_type == "fourier":
            yield FourierEmbedding(nf, model["fourier_scale"])
        if settings.conditional:
            yield _dense(2 * nf if self.embedding_type == "fourier" else nf, 4 * nf)
            yield _dense(4 * nf, 4 * nf)

        def residual(inputs: int, outputs: int, resample: str | None = None) -> ResidualBlock:
            return ResidualBlock(self.kind, inputs, outputs, settings, resample)

        def attention(channels: int) -> Attention:
            return Attention(channels, settings.rescale, settings.init_scale)

        yield _conv3x3(image_channels, nf)
        channels, skips, pyramid = nf, [nf], image_channels
        for level, width in enumerate(widths):
            for _ in range(self.blocks):
                yield residual(channels, width)
                channels = width
                if self.resolutions[level] in self.attention_resolutions:
                    yield attention(channels)
                skips.append(channels)
            if level != self.levels - 1:
                if self.kind == "ddpm":
                    yield Resample(channels, channels, False, model["resamp_with_conv"], settings.taps)
                else:
                    yield residual(channels, channels, "down")
                if self.progressive_input == "input_skip":
                    yield Combine(pyramid, channels, model["progressive_combine"].lower())
                    channels *= 2 if model["progressive_combine"].lower() == "cat" else 1
                elif self.progressive_input == "residual":
                    yield Resample(pyramid, channels, False, True, settings.taps)
                    pyramid = channels
                skips.append(channels)

        yield residual(channels, channels)
        yield attention(channels)
        yield residual(channels, channels)

        for level, width in reversed(list(enumerate(widths))):
            for _ in range(self.blocks + 1):
                yield residual(channels + skips.pop(), width)
                channels = width
            if self.resolutions[level] in self.attention_resolutions:
                yield attention(channels)
            if self.progressive == "output_skip":
                yield _group_norm(channels)
                yield _conv3x3(channels, image_channels, settings.init_scale)
            elif self.progressive == "residual":
                if level == self.levels - 1:
                    yield _group_norm(channels)
                    yield _conv3x3(channels, channels)
                else:
                    yield Resample(pyramid, channels, True, True, settings.taps)
                pyramid = channels
            if level != 0:
                if self.kind == "ddpm":
                    yield Resample(channels, channels, True, model["resamp_with_conv"], settings.taps)
                else:
                    yield residual(channels, channels, "up")
        assert not skips
        if self.progressive != "output_skip":
            yield _group_norm(channels)
            yield _conv3x3(channels, image_channels, settings.init_scale)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Args: `x` (b, c, h, w), in [-1, 1] at no noise where `centered`, else [0, 1]; `labels` (b,): sigma with the
        Fourier embedding, else the index of the noise level, which may be fractional (999 t for the continuous VP
        models). Returns the shape of `x`.
        """
        layers = iter(self.all_modules)
        labels = labels.to(x.dtype)
        if self.embedding_type == "fourier":
            sigmas, embedding = labels, next(layers)(labels.log())
        else:
            sigmas, embedding = self.sigmas[labels.long()].to(x.dtype), positional_embedding(labels, self.nf)
        if self.settings.conditional:
            embedding = next(layers)(embedding)
            embedding = next(layers)(self.settings.activation(embedding))
        else:
            embedding = None
        if not self.centered:
            x = 2 * x - 1

        pyramid, skips = x, [next(layers)(x)]
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = next(layers)(skips[-1], embedding)
                if self.resolutions[level] in self.attention_resolutions:
                    h = next(layers)(h)
                skips.append(h)
            if level != self.levels - 1:
                h = next(layers)(skips[-1], *self._block_arguments(embedding))
                if self.progressive_input == "input_skip":
                    pyramid = _resampled(pyramid, False, self.settings.taps)
                    h = next(layers)(pyramid, h)
                elif self.progressive_input == "residual":
                    h = pyramid = _joined(next(layers)(pyramid), h, self.settings.rescale)
                skips.append(h)

        h = next(layers)(skips[-1], embedding)
        h = next(layers)(h)
        h = next(layers)(h, embedding)

        for level in reversed(range(self.levels)):
            for _ in range(self.blocks + 1):
                h = next(layers)(torch.cat([h, skips.pop()], dim=1), embedding)
            if self.resolutions[level] in self.attention_resolutions:
                h = next(layers)(h)
            if self.progressive == "output_skip":
                part = self._normalised_convolution(layers, h)
                pyramid = part if level == self.levels - 1 else _resampled(pyramid, True, self.settings.taps) + part
            elif self.progressive == "residual" and level == self.levels - 1:
                pyramid = self._normalised_convolution(layers, h)
            elif self.progressive == "residual":
                h = pyramid = _joined(next(layers)(pyramid), h, self.settings.rescale)
            if level != 0:
                h = next(layers)(h, *self._block_arguments(embedding))
        h = pyramid if self.progressive == "output_skip" else self._normalised_convolution(layers, h)
        return h / sigmas[:, None, None, None] if self.scale_by_sigma else h

    def _block_arguments(self, embedding: Tensor | None) -> tuple[Tensor | None, ...]:
        """What a resampling layer takes beside its input: "biggan" resamples in residual blocks, "ddpm" in plain
        layers.
        """
        return () if self.kind == "ddpm" else (embedding,)

    def _normalised_convolution(self, layers: Iterator[nn.Module], h: Tensor) -> Tensor:
        h = self.settings.activation(next(layers)(h))
        return next(layers)(h)


def _check_options(model: dict[str, Any]) -> None:
    """Raises ValueError for a value that the official code does not know."""
    for name, known in (
        ("resblock_type", ("ddpm", "biggan")),
        ("progressive", ("none", "output_skip", "residual")),
        ("progressive_input", ("none", "input_skip", "residual")),
        ("progressive_combine", ("sum", "cat")),
        ("embedding_type", ("positional", "fourier")),
        ("nonlinearity", tuple(_ACTIVATIONS)),
    ):
        if str(model[name]).lower() not in known:
            raise ValueError(f"model.{name}={model[name]!r} is not one of {', '.join(known)}")
