"""NCSN++ and DDPM++.

The official implementation keeps its layers in one list, `all_modules`, in the order in which they are built;
checkpoints carry that numbering, so the layers are built in the same order here, and the forward pass takes them off
the list in that order.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from purify.networks.score_sde.layers import (
    ACTIVATIONS,
    Attention,
    Combine,
    FourierEmbedding,
    Resample,
    ResidualBlock,
    Settings,
    conv3x3,
    dense,
    group_norm,
    joined,
    positional_embedding,
    resampled,
)


class NCSNpp(nn.Module):
    """NCSN++ (VE) and DDPM++ (VP, sub-VP): one class, as its configuration says.

    Args:
        data: official `config.data`: image_size, num_channels, centered.
        model: official `config.model`.
        training: official `config.training`, not used by the network.
    """

    sigmas: Tensor

    def __init__(self, data: dict[str, Any], model: dict[str, Any], training: dict[str, Any] | None = None):
        super().__init__()
        del training
        _check_options(model)
        self.settings = settings = Settings(model)
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

    def _layers(self, image_channels: int, model: dict[str, Any], settings: Settings) -> Iterator[nn.Module]:
        nf, widths = self.nf, [self.nf * multiplier for multiplier in model["ch_mult"]]
        if self.embedding_type == "fourier":
            yield FourierEmbedding(nf, model["fourier_scale"])
        if settings.conditional:
            yield dense(2 * nf if self.embedding_type == "fourier" else nf, 4 * nf)
            yield dense(4 * nf, 4 * nf)

        def residual(inputs: int, outputs: int, resample: str | None = None) -> ResidualBlock:
            return ResidualBlock(self.kind, inputs, outputs, settings, resample)

        def attention(channels: int) -> Attention:
            return Attention(channels, settings.rescale, settings.init_scale)

        yield conv3x3(image_channels, nf)
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
                yield group_norm(channels)
                yield conv3x3(channels, image_channels, settings.init_scale)
            elif self.progressive == "residual":
                if level == self.levels - 1:
                    yield group_norm(channels)
                    yield conv3x3(channels, channels)
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
            yield group_norm(channels)
            yield conv3x3(channels, image_channels, settings.init_scale)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Args: `x` (b, c, h, w), in [-1, 1] at no noise where `centered`, else [0, 1]; `labels` (b,): sigma with the
        Fourier embedding, else the index of the noise level, which may be fractional (999 t for the continuous VP
        models). Returns the shape of `x`.
        """
        layers = iter(self.all_modules)
        sigmas, embedding = self._embedded(layers, labels.to(x.dtype))
        if not self.centered:
            x = 2 * x - 1

        h: Tensor
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
                    pyramid = resampled(pyramid, False, self.settings.taps)
                    h = next(layers)(pyramid, h)
                elif self.progressive_input == "residual":
                    h = pyramid = joined(next(layers)(pyramid), h, self.settings.rescale)
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
                pyramid = part if level == self.levels - 1 else resampled(pyramid, True, self.settings.taps) + part
            elif self.progressive == "residual" and level == self.levels - 1:
                pyramid = self._normalised_convolution(layers, h)
            elif self.progressive == "residual":
                h = pyramid = joined(next(layers)(pyramid), h, self.settings.rescale)
            if level != 0:
                h = next(layers)(h, *self._block_arguments(embedding))
        h = pyramid if self.progressive == "output_skip" else self._normalised_convolution(layers, h)
        return h / sigmas[:, None, None, None] if self.scale_by_sigma else h

    def _embedded(self, layers: Iterator[nn.Module], labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The noise levels and what the blocks are told of them, None where they are not."""
        if self.embedding_type == "fourier":
            sigmas, embedding = labels, next(layers)(labels.log())
        else:
            sigmas, embedding = self.sigmas[labels.long()].to(labels.dtype), positional_embedding(labels, self.nf)
        if not self.settings.conditional:
            return sigmas, None
        embedding = next(layers)(embedding)
        return sigmas, next(layers)(self.settings.activation(embedding))

    def _block_arguments(self, embedding: Tensor | None) -> tuple[Tensor | None, ...]:
        """What a resampling layer takes beside its input: "biggan" resamples in residual blocks, "ddpm" in plain
        layers.
        """
        return () if self.kind == "ddpm" else (embedding,)

    def _normalised_convolution(self, layers: Iterator[nn.Module], h: Tensor) -> Tensor:
        h = self.settings.activation(next(layers)(h))
        h = next(layers)(h)
        return h


def _check_options(model: dict[str, Any]) -> None:
    """Raises ValueError for a value that the official code does not know."""
    for name, known in (
        ("resblock_type", ("ddpm", "biggan")),
        ("progressive", ("none", "output_skip", "residual")),
        ("progressive_input", ("none", "input_skip", "residual")),
        ("progressive_combine", ("sum", "cat")),
        ("embedding_type", ("positional", "fourier")),
        ("nonlinearity", tuple(ACTIVATIONS)),
    ):
        if str(model[name]).lower() not in known:
            raise ValueError(f"model.{name}={model[name]!r} is not one of {', '.join(known)}")
