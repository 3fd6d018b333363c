"""The networks of EDM (Karras et al. 2022, arXiv 2206.00364) under their official parameter names."""

from purify.networks.edm.denoisers import EDMPrecond, VEPrecond, VPPrecond
from purify.networks.edm.unets import DhariwalUNet, SongUNet

__all__ = ["DhariwalUNet", "EDMPrecond", "SongUNet", "VEPrecond", "VPPrecond"]
