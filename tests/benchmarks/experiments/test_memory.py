"""Peak memory of gradients, each in a process of its own."""

import sys
from functools import partial

import pytest
import torch

from benchmarks import config
from benchmarks.config.bench import BenchConfig
from benchmarks.experiments import audit
from benchmarks.experiments.memory import peak_mib

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def peak(mode, steps, images=8):
    return peak_mib(
        partial(audit._prepare, config.load(BenchConfig, "fashion-mnist/bench"), "cpu", mode, steps, images), CPU
    )


def test_exact_grows_by_its_states_and_backprop_by_its_graphs():
    """From 20 to 200 steps the peak of `exact` grows by the 180 states more, and by no more than that (but for Python's
    own objects).
    """
    state = 8 * 784 * 4 / 2**20
    few, many = peak("exact", 20), peak("exact", 200)
    assert 0.7 * 180 * state < many - few < 180 * state + 1.5
    assert peak("backprop", 20) > 5 * many
