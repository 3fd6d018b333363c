"""Diffusion-based adversarial purification: a diffusion model in front of any image classifier."""

from purify import schedules
from purify.defense import DefendedClassifier, FixedRandomness
from purify.noise import noise_keys
from purify.purifiers import DiffPure, Langevin, Purifier, Resized
from purify.score import ScoreModel
from purify.zoo import CheckpointError, load_score_model, save_score_model

__all__ = [
    "CheckpointError",
    "DefendedClassifier",
    "DiffPure",
    "FixedRandomness",
    "Langevin",
    "Purifier",
    "Resized",
    "ScoreModel",
    "load_score_model",
    "noise_keys",
    "save_score_model",
    "schedules",
]

__version__ = "0.1.0"
