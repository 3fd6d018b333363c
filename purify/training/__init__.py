"""Losses, and the loop that minimises them, on tensors."""

from purify.training.loop import Trainer, TrainingSettings

__all__ = ["Trainer", "TrainingSettings"]
