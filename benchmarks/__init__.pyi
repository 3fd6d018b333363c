from . import classifiers, config, datasets, evaluation, experiments, reports, runs
from .classifiers import load_classifier
from .evaluation import Evaluation, evaluate

__all__ = [
    "Evaluation",
    "classifiers",
    "config",
    "datasets",
    "evaluate",
    "evaluation",
    "experiments",
    "load_classifier",
    "reports",
    "runs",
]
