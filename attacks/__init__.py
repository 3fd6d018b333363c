"""Attacks on any model that maps images in [0, 1] to logits, deterministic or random."""

from attacks.autoattack import AutoAttack
from attacks.pgd import PGD
from attacks.threat import L2, Linf, Threat

__all__ = ["PGD", "AutoAttack", "L2", "Linf", "Threat"]
