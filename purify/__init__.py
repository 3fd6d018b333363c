"""Diffusion-based adversarial purification: a diffusion model in front of any image classifier."""

from purify import schedules, solvers
from purify.defense import DefendedClassifier, FixedRandomness
from purify.diffusion_classifier import DiffusionClassifier
from purify.ensembles import ensemble
from purify.noise import noise_keys
from purify.purifiers import ADP, GDMP, DiffPure, Gradual, Langevin, Likelihood, OneShot, Purifier, PurifyPlusPlus, Resized, Sequential
from purify.score import ScoreModel
from purify.smoothing import DenoisedSmoothing, Smoothed
from purify.zoo import CheckpointError, load_score_model, save_score_model

__all__ = [
    "ADP",
    "CheckpointError",
    "DefendedClassifier",
    "DenoisedSmoothing",
    "DiffPure",
    "DiffusionClassifier",
    "FixedRandomness",
    "GDMP",
    "Gradual",
    "Langevin",
    "Likelihood",
    "OneShot",
    "Purifier",
    "PurifyPlusPlus",
    "Resized",
    "ScoreModel",
    "Sequential",
    "Smoothed",
    "ensemble",
    "load_score_model",
    "noise_keys",
    "save_score_model",
    "schedules",
    "solvers",
]

__version__ = "0.1.0"
