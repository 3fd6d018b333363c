from .attack import Attack
from .cost import Cost, count_cost
from .ensembles.autoattack import AutoAttack
from .ensembles.eot_autoattack import EOTAutoAttack
from .ensembles.strongest import Strongest, strongest
from .gradient.apgd import APGD
from .gradient.deviated import DeviatedReconstruction
from .gradient.fab import FAB
from .gradient.hammer import DiffHammer
from .gradient.pgd import PGD
from .perceptual.feature_distance import FeatureDistance, lpips_distance
from .perceptual.low_frequency import LowFrequency
from .perceptual.perceptual_pgd import PerceptualPGD
from .perceptual.recolor import ColorChange, ReColorAdv
from .perceptual.spatial import Flow, StAdv
from .query.spsa import SPSA
from .query.square import Square
from .threats import L2, Linf, Threat

__all__ = [
    "Attack",
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
