"""Quality for each network evaluation, on the packaged network: few steps of a good solver classify as many Euler steps
do.
"""

import pytest
import torch

from benchmarks import datasets, load_classifier
from purify import DefendedClassifier, DiffPure, load_score_model, noise_keys

IMAGES, T_STAR = 64, 0.11
FEW = {
    "ancestral": {"steps": 5},
    "ddim": {"steps": 5},
    "heun": {"steps": 5},
    "dpm++": {"steps": 5},
    "dpm++ SDE": {"steps": 5, "solver": "dpm++", "eta": 1.0},
    "exponential": {"steps": 5},
    "predictor-corrector": {"steps": 5, "solver": {"name": "predictor-corrector", "predictor": "ancestral"}},
    "torchdiffeq": {"steps": 6, "method": "midpoint"},
}


@pytest.fixture(scope="module")
def accuracy():
    """accuracy(steps, **options): of one draw of the packaged defence, clean images."""
    data = datasets.load("fashion-mnist-embedded")
    x, y, keys = datasets.as_floats(data.images[:IMAGES]), data.labels[:IMAGES], noise_keys(0, torch.arange(IMAGES), 0)
    score, classifier = load_score_model("fashion-mnist", check=False), load_classifier("fashion-mnist")

    @torch.no_grad()
    def measure(steps, **options):
        return (
            (DefendedClassifier(DiffPure(score, T_STAR, steps, **options), classifier)(x, keys).argmax(1) == y)
            .double()
            .mean()
            .item()
        )

    return measure


@pytest.fixture(scope="module")
def many_steps(accuracy):
    return accuracy(60)


@pytest.mark.parametrize("name", FEW)
def test_five_evaluations_are_as_good_as_sixty_euler_steps(accuracy, many_steps, name):
    options = {"solver": name} | FEW[name]
    assert accuracy(**options) >= many_steps - 0.05


def test_five_euler_steps_are_not(accuracy, many_steps):
    assert accuracy(5) < many_steps - 0.3
