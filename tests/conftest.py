"""Shared fixtures: small models whose behaviour is known. One thread for each process of the tests, and for every
process that a test starts; these find the tree that the tests are in, whatever is installed.
"""

import os
from pathlib import Path

import pytest
import torch

from purify import ScoreModel
from purify.networks import build
from purify.networks.gaussian import GaussianNoise
from purify.schedules import LinearVP

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
if (ROOT / "purify").is_dir():
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Tests that draw from torch's generator see the same numbers, in whatever order they run."""
    torch.manual_seed(0)


@pytest.fixture
def gaussian_score():
    """gaussian_score(mean, std): the exact score model of N(mean, std^2) pixels, float64."""

    def make(mean: float = 0.0, std: float = 0.5) -> ScoreModel:
        schedule = LinearVP()
        return ScoreModel(GaussianNoise(schedule, mean, std), schedule, "noise")

    return make


@pytest.fixture
def unet_score():
    """A small U-Net with random weights that reaches every pixel: nonlinear, and cheap."""
    torch.manual_seed(0)
    network = build("small_unet", {"channels": 1, "base_channels": 16, "multipliers": [1, 2], "blocks": 1})
    for parameter in network.parameters():
        if not parameter.any():  # zero-initialised layers would hide most of the network
            torch.nn.init.normal_(parameter, std=0.05)
    return ScoreModel(network, LinearVP(), "v", image_shape=(1, 28, 28)).requires_grad_(False).eval()
