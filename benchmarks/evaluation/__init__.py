"""The measurement: arrays in, numbers and intervals out."""

from benchmarks.evaluation.evaluate import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
