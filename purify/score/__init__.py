"""One network and what it predicts, as score, noise or denoised image."""

from purify.score.ensembles import ensemble
from purify.score.labels import LabelRounding
from purify.score.model import ScoreModel

__all__ = ["LabelRounding", "ScoreModel", "ensemble"]
