"""The U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239) under the parameter names of its PyTorch port, as SDEdit
released it for CelebA-HQ.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify.networks.score_sde.layers import positional_embedding


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with the time embedding added in between."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float):
        super().__init__()
        self.norm1 = _group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.temb_proj = nn.Linear(embedding, outputs)
        self.norm2 = _group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(embedding))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        x = (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h
        return x


class Attention(nn.Module):
    """Single-head self-attention over all pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.proj_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))
        return x


class Downsample(nn.Module):
    """By 2: a 3x3 convolution padded below and to the right only, or the mean of 2x2 pixels."""

    def __init__(self, channels: int, convolve: bool):
        super().__init__()
        if convolve:
            self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, (0, 1, 0, 1))) if hasattr(self, "conv") else F.avg_pool2d(x, 2)
        return x


class Upsample(nn.Module):
    """By 2: nearest neighbour, then a 3x3 convolution if asked for."""

    def __init__(self, channels: int, convolve: bool):
        super().__init__()
        if convolve:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.conv(x) if hasattr(self, "conv") else x
        return x


class _Group(nn.Module):
    """Layers under a common name."""

    def _get_name(self) -> str:
        return "Module"  # hashes of models hash what they print, which was that of a bare module from the start


class _TimeEmbedding(_Group):
    """Two linear layers."""

    def __init__(self, channels: int, embedding: int):
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(channels, embedding), nn.Linear(embedding, embedding)])

    def forward(self, labels: Tensor) -> Tensor:
        first, second = self.dense
        labels = second(F.silu(first(labels)))
        return labels


class _Level(_Group):
    """The blocks of one resolution, each followed by attention where `attended`.

    Args:
        blocks: channels in and out of each.
        embedding: channels of the time embedding.
        dropout: of the blocks.
        attended: whether there is attention.
    """

    def __init__(self, blocks: list[tuple[int, int]], embedding: int, dropout: float, attended: bool):
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(inputs, outputs, embedding, dropout) for inputs, outputs in blocks)
        self.attn = nn.ModuleList(Attention(outputs) for _, outputs in blocks if attended)

    def forward(self, h: Tensor, embedding: Tensor, skips: list[Tensor], up: bool) -> Tensor:
        """Down, it adds to the `skips`; up, it takes them off."""
        for j, block in enumerate(self.block):
            h = block(torch.cat([h, skips.pop()], dim=1) if up else h, embedding)
            h = self.attn[j](h) if len(self.attn) else h
            if not up:
                skips.append(h)
        return h


class _Middle(_Group):
    """Attention between two blocks."""

    def __init__(self, channels: int, embedding: int, dropout: float):
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, embedding, dropout)
        self.attn_1 = Attention(channels)
        self.block_2 = ResidualBlock(channels, channels, embedding, dropout)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        h = self.block_2(self.attn_1(self.block_1(h, embedding)), embedding)
        return h


class DDPM(nn.Module):
    """The network that predicts the noise of DDPM's chain.

    Args:
        data: official `config.data`: image_size.
        model: official `config.model`: ch, out_ch, ch_mult, num_res_blocks, attn_resolutions, dropout, in_channels,
            resamp_with_conv.
    """

    def __init__(self, data: dict[str, Any], model: dict[str, Any]):
        super().__init__()
        self.ch, embedding = model["ch"], 4 * model["ch"]
        widths = [self.ch * multiplier for multiplier in model["ch_mult"]]
        last, attended, convolve = len(widths) - 1, tuple(model["attn_resolutions"]), bool(model["resamp_with_conv"])
        self.size_multiple = 2**last

        def level(blocks: list[tuple[int, int]], index: int) -> _Level:
            return _Level(blocks, embedding, model["dropout"], data["image_size"] // 2**index in attended)

        self.temb = _TimeEmbedding(self.ch, embedding)
        self.conv_in = nn.Conv2d(model["in_channels"], self.ch, 3, padding=1)

        channels, skips, count = self.ch, [self.ch], model["num_res_blocks"]
        downs = []
        for i, width in enumerate(widths):
            downs.append(level([(channels if j == 0 else width, width) for j in range(count)], i))
            channels = width
            skips += [width] * count
            if i != last:
                downs[i].downsample = Downsample(width, convolve)
                skips.append(width)
        self.down = nn.ModuleList(downs)

        self.mid = _Middle(channels, embedding, model["dropout"])

        ups = []
        for i, width in reversed(list(enumerate(widths))):
            ups.append(level([((channels if j == 0 else width) + skips.pop(), width) for j in range(count + 1)], i))
            channels = width
            if i != 0:
                ups[-1].upsample = Upsample(width, convolve)
        self.up = nn.ModuleList(reversed(ups))  # numbered from the finest level, as the file is

        self.norm_out = _group_norm(channels)
        self.conv_out = nn.Conv2d(channels, model["out_ch"], 3, padding=1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Args: `x` (b, c, h, w); `labels` (b,), the index of the noise level, may be fractional. Returns (b, out_ch,
        h, w).
        """
        embedding = self.temb(positional_embedding(labels.to(x.dtype), self.ch))
        h: Tensor = self.conv_in(x)
        skips = [h]
        for level in self.down:
            h = level(h, embedding, skips, up=False)
            if isinstance(downsample := getattr(level, "downsample", None), Downsample):
                h = downsample(h)
                skips.append(h)
        h = self.mid(h, embedding)
        for level in reversed(self.up):
            h = level(h, embedding, skips, up=True)
            if isinstance(upsample := getattr(level, "upsample", None), Upsample):
                h = upsample(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return h
