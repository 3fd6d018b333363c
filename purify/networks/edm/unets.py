"""EDM's two U-Nets: SongUNet (DDPM++ and NCSN++) and DhariwalUNet (ADM)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify.networks.edm.layers import Conv2d, FourierEmbedding, PositionalEmbedding, UNetBlock, group_norm


class _Levels(nn.Module):
    """The blocks of a U-Net, down in `enc` and up in `dec`, under their official names; subclasses may add auxiliary
    layers to a level, whose names say what they do.

    Args:
        resolution: edge of the training images.
        in_channels: of the images.
        first: channels after the first convolution.
        widths: channels of each level.
        num_blocks: blocks of a level on the way down; one more on the way up.
        attention: edges of the levels with attention.
        attend_once: on the way up, attention in the last block of a level only.
        block: makes a block from channels in, channels out and whether it has attention; `up` and `down` resample.
    """

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        first: int,
        widths: list[int],
        num_blocks: int,
        attention: tuple[int, ...],
        attend_once: bool,
        block: Callable[..., UNetBlock],
    ):
        super().__init__()
        sizes, last = [resolution >> level for level in range(len(widths))], len(widths) - 1
        self.size_multiple = 2**last
        self.enc = nn.ModuleDict()
        channels, skips = first, [first]
        for level, (size, width) in enumerate(zip(sizes, widths, strict=True)):
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = Conv2d(in_channels, channels, 3)
            else:
                self.enc[f"{size}x{size}_down"] = block(channels, channels, down=True)
                skips.append(channels)
                self._add_down(f"{size}x{size}", channels)
            for i in range(num_blocks):
                self.enc[f"{size}x{size}_block{i}"] = block(channels, width, size in attention)
                channels = width
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for level, (size, width) in reversed(list(enumerate(zip(sizes, widths, strict=True)))):
            if level == last:
                self.dec[f"{size}x{size}_in0"] = block(channels, channels, True)
                self.dec[f"{size}x{size}_in1"] = block(channels, channels)
            else:
                self.dec[f"{size}x{size}_up"] = block(channels, channels, up=True)
            for i in range(num_blocks + 1):
                here = size in attention and (i == num_blocks or not attend_once)
                self.dec[f"{size}x{size}_block{i}"] = block(channels + skips.pop(), width, here)
                channels = width
            self._add_up(f"{size}x{size}", channels, level == 0, level == last)

    def _add_down(self, size: str, channels: int) -> None:
        """Layers after the downsampling to a level."""

    def _add_up(self, size: str, channels: int, finest: bool, coarsest: bool) -> None:
        """Layers after the last block of a level on the way up."""

    def _encoded(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """What the way down leaves for the way up, from the finest level; the last one is the way up's own input."""
        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                aux = layer(aux)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + layer(aux)
            elif name.endswith("aux_residual"):
                x = skips[-1] = aux = (x + layer(aux)) / math.sqrt(2)
            else:
                x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        return skips

    def _decoded(self, skips: list[Tensor], embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """The finest features, and the sum of the levels' outputs where there are such layers."""
        x = normed = skips[-1]
        out: Tensor | None = None
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                out = layer(out)
            elif name.endswith("aux_norm"):
                normed = layer(x)
            elif name.endswith("aux_conv"):
                part = layer(F.silu(normed))
                out = part if out is None else out + part
            else:
                # the blocks that take a skip beside the level's features have room for its channels
                x = layer(torch.cat([x, skips.pop()], dim=1) if x.shape[1] != layer.in_channels else x, embedding)
        return x, out


class SongUNet(_Levels):
    """DDPM++ and NCSN++ as EDM wrote them; the arguments are the official ones."""

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: tuple[float, ...] = (1, 1),
    ):
        del label_dropout  # of training only
        for name, value, known in (
            ("embedding_type", embedding_type, ("positional", "fourier")),
            ("encoder_type", encoder_type, ("standard", "skip", "residual")),
            ("decoder_type", decoder_type, ("standard", "skip")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")
        embedding, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        # what the auxiliary layers need, which the constructor of the levels asks for
        self._encoder, self._decoder, self._taps = encoder_type, decoder_type, tuple(resample_filter)
        self._aux, self._out = in_channels, out_channels

        def block(
            inputs: int, outputs: int, attention: bool = False, up: bool = False, down: bool = False
        ) -> UNetBlock:
            return UNetBlock(
                inputs,
                outputs,
                embedding,
                up=up,
                down=down,
                heads=int(attention),
                dropout=dropout,
                skip_scale=math.sqrt(0.5),
                eps=1e-6,
                taps=tuple(resample_filter),
                project_resampled=True,
                adaptive_scale=False,
            )

        widths = [model_channels * multiplier for multiplier in channel_mult]
        super().__init__(
            img_resolution, in_channels, model_channels, widths, num_blocks, tuple(attn_resolutions), True, block
        )
        self.map_noise = (
            PositionalEmbedding(noise, endpoint=True) if embedding_type == "positional" else FourierEmbedding(noise)
        )
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)

    def _add_down(self, size: str, channels: int) -> None:
        """The image's own path down: its pixels ("skip"), or channels of it ("residual")."""
        if self._encoder == "skip":
            self.enc[f"{size}_aux_down"] = Conv2d(self._aux, self._aux, 0, down=True, taps=self._taps)
            self.enc[f"{size}_aux_skip"] = Conv2d(self._aux, channels, 1)
        elif self._encoder == "residual":
            self.enc[f"{size}_aux_residual"] = Conv2d(self._aux, channels, 3, down=True, taps=self._taps, fused=True)
            self._aux = channels

    def _add_up(self, size: str, channels: int, finest: bool, coarsest: bool) -> None:
        """The output at the finest level, or with decoder_type="skip" a part of it at every level."""
        if self._decoder == "skip" and not coarsest:
            self.dec[f"{size}_aux_up"] = Conv2d(self._out, self._out, 0, up=True, taps=self._taps)
        if self._decoder == "skip" or finest:
            self.dec[f"{size}_aux_norm"] = group_norm(channels, 1e-6)
            self.dec[f"{size}_aux_conv"] = Conv2d(channels, self._out, 3)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Args: `x` (b, c, h, w); `noise_labels` (b,); `class_labels` (b, label_dim), one-hot, for class-conditional
        networks.
        """
        embedding: Tensor = self.map_noise(noise_labels)
        # sines first, as in score_sde
        embedding = embedding.reshape(len(embedding), 2, -1).flip(1).reshape(embedding.shape)
        if self.map_label is not None:
            assert class_labels is not None  # the denoisers around these networks see to it
            embedding = embedding + self.map_label(class_labels * math.sqrt(self.map_label.in_features))
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))
        _, out = self._decoded(self._encoded(x, embedding), embedding)
        assert out is not None  # every decoder type has an output at the finest level
        return out


class DhariwalUNet(_Levels):
    """ADM as EDM wrote it; the arguments are the official ones."""

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: tuple[int, ...] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ):
        del label_dropout  # of training only
        embedding = model_channels * channel_mult_emb
        widths = [model_channels * multiplier for multiplier in channel_mult]

        def block(
            inputs: int, outputs: int, attention: bool = False, up: bool = False, down: bool = False
        ) -> UNetBlock:
            heads = outputs // 64 if attention else 0
            return UNetBlock(inputs, outputs, embedding, up=up, down=down, heads=heads, dropout=dropout)

        super().__init__(
            img_resolution, in_channels, widths[0], widths, num_blocks, tuple(attn_resolutions), False, block
        )
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(label_dim, embedding, bias=False) if label_dim else None
        self.out_norm = group_norm(widths[0])
        self.out_conv = Conv2d(widths[0], out_channels, 3)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Arguments as for `SongUNet`."""
        embedding: Tensor = self.map_layer1(F.silu(self.map_layer0(self.map_noise(noise_labels))))
        if self.map_label is not None:
            embedding = embedding + self.map_label(class_labels)
        embedding = F.silu(embedding)
        x, _ = self._decoded(self._encoded(x, embedding), embedding)
        out: Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return out
