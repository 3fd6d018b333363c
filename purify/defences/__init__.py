"""What is deployed: a purifier in front of a classifier, votes over its draws, smoothing, and classifiers made of
diffusion models alone.
"""

from purify.defences.defended import DefendedClassifier
from purify.defences.diffusion_classifier import DiffusionClassifier
from purify.defences.fixed_randomness import FixedRandomness
from purify.defences.smoothed import DenoisedSmoothing, Smoothed
from purify.defences.votes import TIE, plurality

__all__ = [
    "TIE",
    "DefendedClassifier",
    "DenoisedSmoothing",
    "DiffusionClassifier",
    "FixedRandomness",
    "Smoothed",
    "plurality",
]
