"""ADM, the U-Net of guided-diffusion (Dhariwal & Nichol 2021, arXiv 2105.05233), under its official parameter names."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def timestep_embedding(labels: Tensor, channels: int) -> Tensor:
    """(b,) -> (b, channels): cosines, then sines, at frequencies from 1 down to almost 1/10000."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=labels.dtype, device=labels.device))
    angles = labels[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, channels % 2))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters 0: a block that ends with it starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution if asked for."""

    def __init__(self, channels: int, convolve: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if convolve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return x


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, or the mean of 2x2 pixels."""

    def __init__(self, channels: int, convolve: bool):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if convolve else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.op(x)
        return x


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the time embedding added or as scale and shift; may resample in between."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        dropout: float,
        scale_shift: bool,
        resample: type[nn.Module] | None = None,
    ):
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(_group_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.resample = resample(inputs, False) if resample else nn.Identity()
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs if scale_shift else outputs))
        self.out_layers = nn.Sequential(
            _group_norm(outputs), nn.SiLU(), nn.Dropout(dropout), zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        )
        self.skip_connection = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        normalise, activate, convolve = self.in_layers
        h = convolve(self.resample(activate(normalise(x))))
        modulation = self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + modulation)
        x = self.skip_connection(self.resample(x)) + h
        return x


class AttentionBlock(nn.Module):
    """Multi-head self-attention over all pixels. The old order groups q, k, v by head, the new one heads by q, k, v."""

    def __init__(self, channels: int, heads: int, new_order: bool):
        super().__init__()
        if channels % heads:
            raise ValueError(f"attention over {channels} channels cannot have {heads} heads")
        self.heads, self.new_order = heads, new_order
        self.norm = _group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm(x).flatten(2))
        if self.new_order:
            q, k, v = qkv.reshape(b, 3, self.heads, c // self.heads, -1).transpose(3, 4).unbind(1)
        else:
            q, k, v = qkv.reshape(b, self.heads, 3, c // self.heads, -1).transpose(3, 4).unbind(2)
        h: Tensor = self.proj_out(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, -1))
        return x + h.reshape(b, c, height, width)


class _Stage(nn.Sequential):
    """Layers in a row; those that take the time embedding get it."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class ADM(nn.Module):
    """The arguments are those of guided-diffusion's `UNetModel`.

    Args:
        image_size: edge of the training images.
        in_channels: channels of the images.
        model_channels: base width.
        out_channels: channels of the output: twice `in_channels` where the variance is learned (it comes second).
        num_res_blocks: residual blocks per level on the way down.
        attention_resolutions: downsampling factors at which there is attention.
        dropout: probability.
        channel_mult: width of each level as a multiple of `model_channels`.
        conv_resample: convolutions in resampling layers (without `resblock_updown`).
        num_classes: number of classes of a class-conditional network, else None.
        num_heads: attention heads, where `num_head_channels` is -1.
        num_head_channels: channels per head, or -1.
        num_heads_upsample: attention heads on the way up, or -1 for `num_heads`.
        use_scale_shift_norm: the time embedding as scale and shift.
        resblock_updown: residual blocks that resample.
        use_new_attention_order: see `AttentionBlock`.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: tuple[int, ...],
        dropout: float = 0.0,
        channel_mult: tuple[float, ...] = (1, 2, 4, 8),
        conv_resample: bool = True,
        num_classes: int | None = None,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
    ):
        super().__init__()
        self.image_size, self.model_channels, self.num_classes = image_size, model_channels, num_classes
        self.size_multiple = 2 ** (len(channel_mult) - 1)
        embedding = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, embedding)

        def residual(inputs: int, outputs: int, resample: type[nn.Module] | None = None) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, embedding, dropout, use_scale_shift_norm, resample)

        def attention(channels: int, heads: int) -> AttentionBlock:
            return AttentionBlock(
                channels, heads if num_head_channels == -1 else channels // num_head_channels, use_new_attention_order
            )

        widths = [int(multiplier * model_channels) for multiplier in channel_mult]
        channels = widths[0]
        self.input_blocks = nn.ModuleList([_Stage(nn.Conv2d(in_channels, channels, 3, padding=1))])
        skips = [channels]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [residual(channels, width)]
                channels = width
                if 2**level in attention_resolutions:
                    layers.append(attention(channels, num_heads))
                self.input_blocks.append(_Stage(*layers))
                skips.append(channels)
            if level != len(widths) - 1:
                self.input_blocks.append(
                    _Stage(
                        residual(channels, channels, Downsample)
                        if resblock_updown
                        else Downsample(channels, conv_resample)
                    )
                )
                skips.append(channels)

        self.middle_block = _Stage(
            residual(channels, channels), attention(channels, num_heads), residual(channels, channels)
        )

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                layers = [residual(channels + skips.pop(), width)]
                channels = width
                if 2**level in attention_resolutions:
                    layers.append(attention(channels, num_heads if num_heads_upsample == -1 else num_heads_upsample))
                if level and i == num_res_blocks:
                    layers.append(
                        residual(channels, channels, Upsample) if resblock_updown else Upsample(channels, conv_resample)
                    )
                self.output_blocks.append(_Stage(*layers))
        self.out = nn.Sequential(
            _group_norm(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, out_channels, 3, padding=1))
        )

    def forward(self, x: Tensor, labels: Tensor, y: Tensor | None = None) -> Tensor:
        """Args: `x` (b, c, h, w); `labels` (b,), the index of the noise level, may be fractional; `y` (b,) int64, the
        classes of a class-conditional network. Returns (b, out_channels, h, w).
        """
        if (y is None) != (self.num_classes is None):
            raise ValueError(
                f"a network with num_classes={self.num_classes} takes"
                f" {'no class labels' if self.num_classes is None else 'class labels y'}"
            )
        embedding = self.time_embed(timestep_embedding(labels.to(x.dtype), self.model_channels))
        if y is not None:
            embedding = embedding + self.label_emb(y)
        h, skips = x, []
        for stage in self.input_blocks:
            h = stage(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        out: Tensor = self.out(h)
        return out
