"""The networks of EDM (Karras et al. 2022, arXiv 2206.00364) under their official parameter names: SongUNet (DDPM++ and
NCSN++), DhariwalUNet (ADM), and the preconditioning that makes denoisers D(x; sigma) of them (table 1 there).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify.networks.preconditioning import preconditioning


class PositionalEmbedding(nn.Module):
    """Cosines, then sines, at frequencies from 1 down to 1/10000 (`endpoint`: reaching it)."""

    def __init__(self, channels: int, endpoint: bool = False):
        super().__init__()
        self.half, self.endpoint = channels // 2, endpoint

    def forward(self, labels: Tensor) -> Tensor:
        exponents = torch.arange(self.half, dtype=labels.dtype, device=labels.device) / (self.half - self.endpoint)
        angles = labels[:, None] * (1 / 10000) ** exponents
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines, then sines, at fixed random frequencies."""

    def __init__(self, channels: int, scale: float = 16.0):
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, labels: Tensor) -> Tensor:
        angles = labels[:, None] * (2 * math.pi * self.freqs).to(labels.dtype)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Conv2d(nn.Module):
    """A convolution with a resampling FIR filter before it, or around it where `fused`; kernel 0 only resamples."""

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
        pad = 0 if self.weight is None else self.weight.shape[2] // 2
        if self.up or self.down:
            edge = (self.resample_filter.shape[2] - 1) // 2
            fused = self.fused and self.weight is not None
            if self.up:
                x = F.conv_transpose2d(
                    x, self._filter(x, 4.0), groups=x.shape[1], stride=2, padding=max(edge - pad, 0) if fused else edge
                )
                pad = max(pad - edge, 0) if fused else pad
            elif fused:
                x = F.conv2d(x, self.weight, padding=pad + edge)
                return F.conv2d(x, self._filter(x), groups=x.shape[1], stride=2) + self.bias[:, None, None]
            else:
                x = F.conv2d(x, self._filter(x), groups=x.shape[1], stride=2, padding=edge)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=pad)

    def _filter(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return (gain * self.resample_filter).to(x.dtype).expand(x.shape[1], 1, -1, -1)


def _group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
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
        self.norm0 = _group_norm(inputs, eps)
        self.conv0 = Conv2d(inputs, outputs, 3, up, down, taps)
        self.affine = nn.Linear(embedding, 2 * outputs if adaptive_scale else outputs)
        self.norm1 = _group_norm(outputs, eps)
        self.conv1 = Conv2d(outputs, outputs, 3)
        self.skip = None
        if inputs != outputs or up or down:
            self.skip = Conv2d(inputs, outputs, 1 if project_resampled or inputs != outputs else 0, up, down, taps)
        if heads:
            self.norm2 = _group_norm(outputs, eps)
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


class _Levels(nn.Module):
    """The blocks of a U-Net, down in `enc` and up in `dec`, under their official names; subclasses may add layers of
    their own to a level.

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
        block: Callable[..., "UNetBlock"],
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
        self._encoder, self._decoder, self._taps, self._aux, self._out = (
            encoder_type,
            decoder_type,
            tuple(resample_filter),
            in_channels,
            out_channels,
        )

        def block(inputs: int, outputs: int, attention: bool = False, **options: bool) -> UNetBlock:
            settings = dict(
                dropout=dropout,
                skip_scale=math.sqrt(0.5),
                eps=1e-6,
                taps=self._taps,
                project_resampled=True,
                adaptive_scale=False,
            )
            return UNetBlock(inputs, outputs, embedding, heads=int(attention), **settings, **options)

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
            self.dec[f"{size}_aux_norm"] = _group_norm(channels, 1e-6)
            self.dec[f"{size}_aux_conv"] = Conv2d(channels, self._out, 3)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Args: `x` (b, c, h, w); `noise_labels` (b,); `class_labels` (b, label_dim), one-hot, for class-conditional
        networks.
        """
        embedding = self.map_noise(noise_labels)
        # sines first, as in score_sde
        embedding = embedding.reshape(len(embedding), 2, -1).flip(1).reshape(embedding.shape)
        if self.map_label is not None:
            embedding = embedding + self.map_label(class_labels * math.sqrt(self.map_label.in_features))
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

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

        out = normed = None
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                out = layer(out)
            elif name.endswith("aux_norm"):
                normed = layer(x)
            elif name.endswith("aux_conv"):
                part = layer(F.silu(normed))
                out = part if out is None else out + part
            else:
                x = layer(torch.cat([x, skips.pop()], dim=1) if x.shape[1] != layer.in_channels else x, embedding)
        assert out is not None
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
        embedding, widths = (
            model_channels * channel_mult_emb,
            [model_channels * multiplier for multiplier in channel_mult],
        )

        def block(inputs: int, outputs: int, attention: bool = False, **options: bool) -> UNetBlock:
            return UNetBlock(
                inputs, outputs, embedding, heads=outputs // 64 if attention else 0, dropout=dropout, **options
            )

        super().__init__(
            img_resolution, in_channels, widths[0], widths, num_blocks, tuple(attn_resolutions), False, block
        )
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(label_dim, embedding, bias=False) if label_dim else None
        self.out_norm = _group_norm(widths[0])
        self.out_conv = Conv2d(widths[0], out_channels, 3)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Arguments as for `SongUNet`."""
        embedding = self.map_layer1(F.silu(self.map_layer0(self.map_noise(noise_labels))))
        if self.map_label is not None:
            embedding = embedding + self.map_label(class_labels)
        embedding = F.silu(embedding)
        skips = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            x = layer(torch.cat([x, skips.pop()], dim=1) if x.shape[1] != layer.in_channels else x, embedding)
        return self.out_conv(F.silu(self.out_norm(x)))


_MODELS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


class _Precond(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), sigma (b,); `coefficients` says which."""

    def __init__(self, img_resolution: int, img_channels: int, label_dim: int, model_type: str, model: dict[str, Any]):
        super().__init__()
        if model_type not in _MODELS:
            raise ValueError(f"model_type={model_type!r} is not one of {', '.join(_MODELS)}")
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.model = _MODELS[model_type](
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=img_channels,
            label_dim=label_dim,
            **model,
        )
        self.size_multiple = self.model.size_multiple

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        """c_skip, c_out, c_in, c_noise for `sigma` (b, 1, 1, 1)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={value}"
            for name, value in vars(self).items()
            if isinstance(value, int | float) and not name.startswith("_")
        )

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The denoised image E[x_0 | x] for x = x_0 + sigma noise, (b, c, h, w); `class_labels` (b,) int64 or one-hot
        (b, label_dim), zeros where None.
        """
        sigma = sigma.to(x.dtype).reshape(-1, 1, 1, 1)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        if self.label_dim and class_labels is None:
            class_labels = x.new_zeros(len(x), self.label_dim)
        elif class_labels is not None and class_labels.ndim == 1:
            class_labels = F.one_hot(class_labels, self.label_dim).to(x.dtype)
        return c_skip * x + c_out * self.model(c_in * x, c_noise.flatten().expand(len(x)), class_labels)


class EDMPrecond(_Precond):
    """EDM's own preconditioning."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model: Any,
    ):
        super().__init__(img_resolution, img_channels, label_dim, model_type, model)
        self.sigma_data = sigma_data

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `_Precond.coefficients`."""
        known = preconditioning(sigma, self.sigma_data)
        return known.c_skip, known.c_out, known.c_in, known.c_noise


class VPPrecond(_Precond):
    """score_sde's VP preconditioning, in terms of sigma / alpha."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        model_type: str = "SongUNet",
        **model: Any,
    ):
        super().__init__(img_resolution, img_channels, label_dim, model_type, model)
        del epsilon_t  # of training only
        self.beta_d, self.beta_min, self.M = beta_d, beta_min, M

    def coefficients(self, sigma: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
        """See `_Precond.coefficients`."""
        t = ((self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt() - self.beta_min) / self.beta_d
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1) * t


class VEPrecond(_Precond):
    """score_sde's VE preconditioning."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        model_type: str = "SongUNet",
        **model: Any,
    ):
        super().__init__(img_resolution, img_channels, label_dim, model_type, model)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def coefficients(self, sigma: Tensor) -> tuple[float, Tensor, float, Tensor]:
        """See `_Precond.coefficients`."""
        return 1.0, sigma, 1.0, (0.5 * sigma).log()
