"""Network architectures, by name."""

from typing import Any

from torch import nn

from purify.networks.ddpm import DDPM
from purify.networks.edm import EDMPrecond, VEPrecond, VPPrecond
from purify.networks.guided_diffusion import ADM
from purify.networks.score_sde import NCSNpp
from purify.networks.unet import SmallUNet

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "small_unet": SmallUNet,
    "score_sde/ncsnpp": NCSNpp,
    "guided_diffusion/unet": ADM,
    "ddpm": DDPM,
    "edm/EDMPrecond": EDMPrecond,
    "edm/VPPrecond": VPPrecond,
    "edm/VEPrecond": VEPrecond,
}


def build(architecture: str, config: dict[str, Any]) -> nn.Module:
    """A freshly initialised network.

    Args:
        architecture: a name in `ARCHITECTURES`.
        config: the constructor's arguments.

    Raises:
        ValueError: unknown architecture, or arguments that it does not take.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}; known: {', '.join(sorted(ARCHITECTURES))}")
    try:
        return ARCHITECTURES[architecture](**config)
    except (KeyError, TypeError) as error:
        raise ValueError(f"architecture {architecture!r} does not take this configuration: {error}") from error
