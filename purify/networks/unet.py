"""A noise-conditional U-Net for small images that is cheap on a CPU.

The layout is that of Ho et al. (2020, arXiv 2006.11239) with the scale-and-shift time conditioning of Dhariwal & Nichol
(2021, arXiv 2105.05233). What differs is the stem: a space-to-depth rearrangement folds `stem` x `stem` pixels into
channels, so that no convolution runs at full resolution, where narrow layers spend their time on memory traffic instead
of arithmetic.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify.networks.guided_diffusion import zeroed


def timestep_embedding(t: Tensor, channels: int, scale: float = 1000.0) -> Tensor:
    """Sinusoidal embedding (Vaswani et al. 2017) of `scale * t`.

    Args:
        t: (b,), float, continuous time in [0, 1].
        channels: size of the embedding, even.
        scale: factor on `t`; 1000 makes it the step number of DDPM's chain.

    Returns:
        (b, channels): cosines, then sines, at periods from 2 pi to 20000 pi in units of `scale * t`.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = (scale * t.float())[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the time embedding scales and shifts the second normalisation."""

    def __init__(self, inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = group_norm(outputs)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        x = self.skip(x) + self.conv2(h)
        return x


class SelfAttention(nn.Module):
    """Single-head self-attention over all positions of the feature map."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        out = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(out.transpose(1, 2).reshape(b, c, h, w))
        return x


class SmallUNet(nn.Module):
    """U-Net behind a space-to-depth stem.

    Args:
        channels: channels of the images, in and out.
        base_channels: width of the first level.
        multipliers: width of each level as a multiple of `base_channels`; each level after the first halves the
            resolution.
        blocks: residual blocks per level on the way down (one more on the way up).
        stem: edge of the pixel block folded into channels, 1 for none.
        attention: self-attention at the lowest resolution.

    The output has the input's shape; what it means (noise, v, ...) is the `ScoreModel`'s business. Height and width
    must be multiples of `size_multiple`.
    """

    def __init__(
        self,
        channels: int,
        base_channels: int = 32,
        multipliers: tuple[int, ...] = (1, 2),
        blocks: int = 2,
        stem: int = 2,
        attention: bool = True,
    ):
        super().__init__()
        widths = [base_channels * m for m in multipliers]
        embedding = 4 * base_channels
        self.channels = channels
        self.size_multiple = stem * 2 ** (len(widths) - 1)
        self.embed = nn.Sequential(
            nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.embedding_channels = embedding
        self.fold = nn.PixelUnshuffle(stem)
        self.unfold = nn.PixelShuffle(stem)
        self.conv_in = nn.Conv2d(channels * stem**2, widths[0], 3, padding=1)

        self.down = nn.ModuleList()
        skips = [widths[0]]
        current = widths[0]
        for level, width in enumerate(widths):
            if level > 0:
                self.down.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
                skips.append(current)
            for _ in range(blocks):
                self.down.append(ResidualBlock(current, width, embedding))
                current = width
                skips.append(current)

        self.middle1 = ResidualBlock(current, current, embedding)
        self.attention = SelfAttention(current) if attention else nn.Identity()
        self.middle2 = ResidualBlock(current, current, embedding)

        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(ResidualBlock(current + skips.pop(), width, embedding))
                current = width
            if level > 0:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(current, current, 3, padding=1)))

        self.norm_out = group_norm(current)
        self.conv_out = zeroed(nn.Conv2d(current, channels * stem**2, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # the faster layout on CPUs

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Args: `x` (b, channels, h, w), float, about unit scale; `t` (b,), continuous time in [0, 1]. Returns the
        shape of `x`.
        """
        embedding = self.embed(timestep_embedding(t, self.embedding_channels).to(x.dtype))
        h: Tensor = self.conv_in(self.fold(x))
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, ResidualBlock) else layer(h)
            skips.append(h)
        h = self.middle2(self.attention(self.middle1(h, embedding)), embedding)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], dim=1), embedding) if isinstance(layer, ResidualBlock) else layer(h)
        h = self.unfold(self.conv_out(F.silu(self.norm_out(h))))
        return h
