"""Names for what a run depends on."""

import torch
from torch import nn

from benchmarks.runs import fingerprint_model
from purify import DefendedClassifier, DiffPure, ScoreModel


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


def test_equal_models_are_equal_wherever_they_come_from():
    assert fingerprint_model(linear()) == fingerprint_model(linear())
    changed = linear()
    with torch.no_grad():
        changed[1].bias[0] += 1e-6
    assert len({fingerprint_model(linear()), fingerprint_model(changed), fingerprint_model(linear(), "more")}) == 3


def test_what_is_inside_of_a_purifier_counts(unet_score):
    """A purifier prints its settings alone; two that differ in their score model alone are two models."""
    other = ScoreModel(unet_score.network, unet_score.schedule, "v")
    models = [DefendedClassifier(DiffPure(score, steps=2), linear()) for score in (unet_score, other)]
    assert repr(models[0]) == repr(models[1])
    assert fingerprint_model(models[0]) != fingerprint_model(models[1])
