"""Attacks on any model that maps images in [0, 1] to logits, deterministic or random."""

from attacks.apgd import APGD
from attacks.autoattack import AutoAttack
from attacks.cost import Cost, count_cost
from attacks.deviated import DeviatedReconstruction
from attacks.ensemble import EOTAutoAttack
from attacks.fab import FAB
from attacks.feature_distance import FeatureDistance, lpips_distance
from attacks.hammer import DiffHammer
from attacks.low_frequency import LowFrequency
from attacks.perceptual import PerceptualPGD
from attacks.pgd import PGD
from attacks.recolor import ColorChange, ReColorAdv
from attacks.spatial import Flow, StAdv
from attacks.spsa import SPSA
from attacks.square import Square
from attacks.strongest import Strongest, strongest
from attacks.threat import L2, Linf, Threat

__all__ = [
    "APGD",
    "FAB",
    "L2",
    "PGD",
    "SPSA",
    "AutoAttack",
    "ColorChange",
    "Cost",
    "DeviatedReconstruction",
    "DiffHammer",
    "EOTAutoAttack",
    "FeatureDistance",
    "Flow",
    "Linf",
    "LowFrequency",
    "PerceptualPGD",
    "ReColorAdv",
    "Square",
    "StAdv",
    "Strongest",
    "Threat",
    "count_cost",
    "lpips_distance",
    "strongest",
]
