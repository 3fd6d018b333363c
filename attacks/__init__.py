"""Attacks on any model that maps images in [0, 1] to logits, deterministic or random."""

from attacks.autoattack import AutoAttack
from attacks.cost import Cost, count_cost
from attacks.pgd import PGD
from attacks.threat import L2, Linf, Threat

__all__ = ["PGD", "AutoAttack", "Cost", "L2", "Linf", "Threat", "count_cost"]
