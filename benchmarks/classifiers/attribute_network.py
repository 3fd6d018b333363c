"""The network of the CelebA-HQ attribute classifiers of Karras et al. (2019, arXiv 1812.04948, section 4.2): ProGAN's
discriminator (arXiv 1710.10196) at a fixed resolution, without the minibatch statistics. Names of the tensors as in the
PyTorch files of Chai et al. (2021, arXiv 2104.14551).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AttributeNetwork(nn.Module):
    """Images in [-1, 1] -> two logits: the attribute is absent (0) or present (1).

    Args:
        resolution: of the images, a power of 2, at least 8; the published networks have 256. Larger images whose sides
            are a multiple are averaged down.
        base: sets the channels: base / 2^(k - 1) at resolution 2^k, at most `widest`.
        widest: most channels of a layer.
    """

    def __init__(self, resolution: int = 256, base: int = 8192, widest: int = 512):
        super().__init__()
        levels = int(math.log2(resolution))
        if resolution < 8 or 2**levels != resolution:
            raise ValueError(f"resolution must be a power of 2, at least 8, got {resolution}")
        channels = [min(base // 2**level, widest) for level in range(levels)]
        self.resolution = resolution
        # in the files; of progressive training, no part of the function
        self.register_buffer("lod_in", torch.zeros((), dtype=torch.float64))
        self.fromrgb_lod0 = nn.Sequential()
        self.fromrgb_lod0.add_module("conv", _Scaled(nn.Conv2d(3, channels[-1], 1, bias=False)))
        self.blocks = [f"{2**level}x{2**level}" for level in range(levels, 2, -1)]
        for level, name in zip(range(levels, 2, -1), self.blocks, strict=True):
            wide, narrow = channels[level - 1], channels[level - 2]
            convolutions = {
                "conv0": _Scaled(nn.Conv2d(wide, wide, 3, padding=1, bias=False)),
                "conv1": _Scaled(nn.Conv2d(wide, narrow, 3, padding=1, bias=False)),
            }
            self.add_module(name, nn.ModuleDict(convolutions))
        head = {
            "conv": _Scaled(nn.Conv2d(channels[1], channels[1], 3, padding=1, bias=False)),
            "dense0": _Scaled(nn.Linear(16 * channels[1], channels[0], bias=False)),
            "dense1": _Scaled(nn.Linear(channels[0], 1, bias=False), gain=1.0),
        }
        self.add_module("4x4", nn.ModuleDict(head))

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, 3, h, w) in [-1, 1], h = w a multiple of the resolution -> (b, 2). Raises ValueError for
        another size.
        """
        factor, rest = divmod(x.shape[-1], self.resolution)
        if x.shape[-1] != x.shape[-2] or rest or not factor:
            raise ValueError(
                f"x must be square images of {self.resolution} pixels a side or a multiple, got {tuple(x.shape[2:])}"
            )
        h = _activation(self.fromrgb_lod0(x if factor == 1 else F.avg_pool2d(x, factor)))
        for name in self.blocks:
            block = getattr(self, name)
            h = _activation(F.avg_pool2d(block["conv1"](_activation(block["conv0"](h))), 2))
        head = getattr(self, "4x4")
        h = _activation(head["conv"](h)).flatten(1)
        logit = head["dense1"](_activation(head["dense0"](h)))
        return torch.cat([logit, -logit], 1)  # trained on 1 - label: a negative logit says that the attribute is there


class _Scaled(nn.Module):
    """A layer with equalised learning rate: weights of unit variance, scaled by gain / sqrt(fan-in) when used, and a
    bias.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, gain: float = math.sqrt(2)):
        super().__init__()
        self.kind = "conv" if isinstance(layer, nn.Conv2d) else "linear"
        nn.init.normal_(layer.weight)
        self.add_module(self.kind, layer)
        self.wscale = nn.ParameterDict({"b": nn.Parameter(torch.zeros(len(layer.weight)))})
        self.scale = gain / math.sqrt(layer.weight[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        bias = self.wscale["b"]
        layer: nn.Module = getattr(self, self.kind)
        result: Tensor = layer(x) * self.scale + (bias[:, None, None] if self.kind == "conv" else bias)
        return result


def _activation(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)
