"""The measurement: arrays in, numbers and intervals out."""

from benchmarks.evaluation.evaluate import evaluate
from benchmarks.evaluation.result import Evaluation

__all__ = ["Evaluation", "evaluate"]
