from . import defences, gradients, networks, noise, purifiers, schedules, score, solvers, training, zoo
from .defences import DefendedClassifier, DenoisedSmoothing, DiffusionClassifier, FixedRandomness, Smoothed
from .noise import noise_keys
from .purifiers import (
    ADP,
    GDMP,
    DiffPure,
    Gradual,
    Langevin,
    Likelihood,
    OneShot,
    Purifier,
    PurifyPlusPlus,
    Resized,
    Sequential,
)
from .score import ScoreModel, ensemble
from .zoo import CheckpointError, load_score_model, save_score_model

__all__ = [
    "ADP",
    "GDMP",
    "CheckpointError",
    "DefendedClassifier",
    "DenoisedSmoothing",
    "DiffPure",
    "DiffusionClassifier",
    "FixedRandomness",
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
    "defences",
    "ensemble",
    "gradients",
    "load_score_model",
    "networks",
    "noise",
    "noise_keys",
    "purifiers",
    "save_score_model",
    "schedules",
    "score",
    "solvers",
    "training",
    "zoo",
]

__version__: str
