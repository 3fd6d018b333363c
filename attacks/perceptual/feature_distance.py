"""Distances between images in the features of a network, as threat models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks.perceptual.bisection import largest_factor

_BACKBONES = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}


@dataclass(frozen=True)
class FeatureDistance:
    """All images in [0, 1] within `epsilon` of the original in the features of a network: |phi(x_adv) - phi(x)|,
    Euclidean.

    For feature maps phi is that of Laidlaw et al. 2021 (arXiv 2006.12655, Section 3, after Zhang et al. 2018, arXiv
    1801.03924): every position's channels are scaled to unit length and divided by the square root of the number of
    positions, and all maps are put together. It is LPIPS without learned weights, so a result under it is a feature
    distance, not LPIPS; `lpips_distance` makes the real one.

    Args:
        features: images (n, c, h, w) in [0, 1] -> one tensor or several of them, each of feature maps (n, channels,
            rows, columns), or of vectors (n, d), which are used as they are. It is called as it is: put it into
            evaluation mode. Its calls are not part of an attack's cost.
        epsilon: largest distance; positive. Laidlaw et al. use 0.5 with AlexNet; the low-frequency attack 0.05 with
            LPIPS.
        squared: the square of that distance is meant.
        name: how reports call it; default: feature distance, with the network's class.
    """

    features: nn.Module = field(repr=False)
    epsilon: float
    squared: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.features, nn.Module):
            raise ValueError(
                f"features must be a torch.nn.Module that maps images to features, got {type(self.features).__name__}"
            )
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be a positive number, got {self.epsilon}")

    @property
    def radius(self) -> float:
        """The largest |phi(x_adv) - phi(x)|."""
        return math.sqrt(self.epsilon) if self.squared else self.epsilon

    def embed(self, x: Tensor) -> Tensor:
        """(n, d): phi of images (n, c, h, w), differentiable, in their dtype; the network sees its own dtype."""
        parameter = next(self.features.parameters(), x)
        out = self.features(x.to(parameter.dtype))
        parts = [out] if isinstance(out, Tensor) else list(out)
        if not parts or not all(
            isinstance(part, Tensor) and part.ndim in (2, 4) and len(part) == len(x) for part in parts
        ):
            shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
            raise ValueError(
                f"features must give tensors of shape ({len(x)}, channels, rows, columns) or ({len(x)}, d), got"
                f" {shapes}"
            )
        return torch.cat([_unit(part) if part.ndim == 4 else part for part in parts], 1).to(x.dtype)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(n,): how far images are apart, differentiable (with gradient 0 where they are equal)."""
        square = (self.embed(x_adv) - self.embed(x)).square().sum(1)
        return square if self.squared else square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()

    @torch.no_grad()
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Allowed images: `x_adv` where it is allowed, else as far towards it from `x` as bisection finds allowed."""
        origin, change = self.embed(x), x_adv.clamp(0, 1) - x

        def images(factors: Tensor) -> Tensor:
            return (x + factors[:, None, None, None] * change).clamp(0, 1)

        def allowed(factors: Tensor) -> Tensor:
            # room for rounding in another batch
            moved: Tensor = (self.embed(images(factors)) - origin).norm(dim=1)
            return moved <= self.radius * (1 - 1e-5)

        return images(largest_factor(allowed, len(x), x))

    def __str__(self) -> str:
        return f"{self.name or f'feature distance ({type(self.features).__name__})'} {self.epsilon:g}"


def check_feature_distance(settings: object) -> None:
    """Raises ValueError unless an attack's `threat` is a `FeatureDistance`."""
    threat = getattr(settings, "threat", None)
    if not isinstance(threat, FeatureDistance):
        raise ValueError(
            f"threat must be a FeatureDistance, for instance lpips_distance(0.05), got {type(threat).__name__}"
        )


def lpips_distance(epsilon: float = 0.05, net: Literal["alex", "vgg", "squeeze"] = "vgg") -> FeatureDistance:
    """LPIPS (Zhang et al. 2018, arXiv 1801.03924) at most `epsilon`, from the package `lpips` and torchvision's
    backbone weights; downloads nothing.

    Raises:
        ValueError: the package or the backbone's weights are not at hand, or an unknown `net`.
    """
    if net not in _BACKBONES:
        raise ValueError(f"net={net!r} is not one of {', '.join(_BACKBONES)}")
    instead = "or pass a network of your own as FeatureDistance(features, epsilon)"
    try:
        import lpips  # an optional extra
        import torchvision.models
    except ImportError as error:
        raise ValueError(f"LPIPS needs the package {error.name}: pip install {error.name}, {instead}") from error
    url = getattr(torchvision.models, _BACKBONES[net]).IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not file.is_file():
        raise ValueError(f"LPIPS with net={net!r} needs the weights {url} at {file}: put them there, {instead}")
    with torch.random.fork_rng(devices=[]):  # the package builds the backbone with random weights first
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    _load_backbone(model.net, torch.load(file, map_location="cpu", weights_only=True))
    return FeatureDistance(
        _LPIPSFeatures(model).requires_grad_(False).eval(), epsilon, squared=True, name=f"LPIPS-{net}"
    )


def _load_backbone(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts torchvision's `features.N.*` into the slices of the package's backbone, whose layers keep torchvision's
    numbers N.
    """
    wanted = {name: name.split(".", 1)[1] for name in net.state_dict()}
    net.load_state_dict({name: state[f"features.{layer}"] for name, layer in wanted.items()})


class _LPIPSFeatures(nn.Module):
    """Vectors whose squared Euclidean distance is LPIPS."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        lpips: Any = self.model
        maps: Sequence[Tensor] = lpips.net(lpips.scaling_layer(2 * x - 1))
        return torch.cat([_unit(of, linear.model[-1].weight) for of, linear in zip(maps, lpips.lins, strict=True)], 1)


def _unit(maps: Tensor, weights: Tensor | None = None) -> Tensor:
    """(n, d): channels scaled to unit length at every position, over the square root of the positions; squares weighted
    by (1, channels, 1, 1).
    """
    maps = maps / (maps.square().sum(1, keepdim=True) + 1e-20).sqrt()  # not a norm: its gradient at 0 is NaN
    maps = maps / math.sqrt(maps.shape[2] * maps.shape[3])
    return (maps if weights is None else maps * weights.sqrt()).flatten(1)
