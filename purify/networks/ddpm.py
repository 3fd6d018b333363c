"""The U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239) under the parameter names of its PyTorch port, as SDEdit
released it for CelebA-HQ.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify.networks.score_sde import positional_embedding


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
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Attention(nn.Module):
    """Single-head self-attention over all pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.proj_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """By 2: a 3x3 convolution padded below and to the right only, or the mean of 2x2 pixels."""

    def __init__(self, channels: int, convolve: bool):
        super().__init__()
        if convolve:
            self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1))) if hasattr(self, "conv") else F.avg_pool2d(x, 2)


class Upsample(nn.Module):
    """By 2: nearest neighbour, then a 3x3 convolution if asked for."""

    def __init__(self, channels: int, convolve: bool):
        super().__init__()
        if convolve:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(x) if hasattr(self, "conv") else x


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

        def level(blocks: list[tuple[int, int]], index: int) -> nn.Module:
            part = nn.Module()
            part.block = nn.ModuleList(
                ResidualBlock(inputs, outputs, embedding, model["dropout"]) for inputs, outputs in blocks
            )
            here = data["image_size"] // 2**index in attended
            part.attn = nn.ModuleList(Attention(outputs) for _, outputs in blocks if here)
            return part

        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(self.ch, embedding), nn.Linear(embedding, embedding)])
        self.conv_in = nn.Conv2d(model["in_channels"], self.ch, 3, padding=1)

        channels, skips = self.ch, [self.ch]
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            self.down.append(level([(channels if j == 0 else width, width) for j in range(model["num_res_blocks"])], i))
            channels = width
            skips += [width] * model["num_res_blocks"]
            if i != last:
                self.down[i].downsample = Downsample(width, convolve)
                skips.append(width)

        self.mid = nn.Module()
        self.mid.block_1 = ResidualBlock(channels, channels, embedding, model["dropout"])
        self.mid.attn_1 = Attention(channels)
        self.mid.block_2 = ResidualBlock(channels, channels, embedding, model["dropout"])

        ups = []
        for i, width in reversed(list(enumerate(widths))):
            ups.append(
                level(
                    [
                        ((channels if j == 0 else width) + skips.pop(), width)
                        for j in range(model["num_res_blocks"] + 1)
                    ],
                    i,
                )
            )
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
        embedding = self.temb.dense[0](positional_embedding(labels.to(x.dtype), self.ch))
        embedding = self.temb.dense[1](F.silu(embedding))

        def blocks(level: nn.Module, h: Tensor, skips: list[Tensor], up: bool) -> Tensor:
            for j, block in enumerate(level.block):
                h = block(torch.cat([h, skips.pop()], dim=1) if up else h, embedding)
                h = level.attn[j](h) if len(level.attn) else h
                if not up:
                    skips.append(h)
            return h

        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            h = blocks(level, h, skips, up=False)
            if hasattr(level, "downsample"):
                h = level.downsample(h)
                skips.append(h)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h, embedding)), embedding)
        for level in reversed(self.up):
            h = blocks(level, h, skips, up=True)
            h = level.upsample(h) if hasattr(level, "upsample") else h
        return self.conv_out(F.silu(self.norm_out(h)))
