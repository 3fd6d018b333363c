"""One network and what it predicts, as score, noise or denoised image."""

from purify.score.ensembles import ensemble
from purify.score.model import LabelRounding, ScoreModel

__all__ = ["LabelRounding", "ScoreModel", "ensemble"]
