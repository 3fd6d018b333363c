"""No two draws of a defence meet: what Philox is asked for one use, it is not asked for another."""

import sys

import pytest
import torch
from torch import nn

from purify import DefendedClassifier, DiffPure, DiffusionClassifier, Resized, ScoreModel, Sequential, Smoothed, noise
from purify.networks.gaussian import GaussianNoise
from purify.noise import KeyedBrownian
from purify.purifiers import PURIFIERS
from purify.schedules import LinearVP
from purify.solvers import SOLVERS, TorchSDE

SCHEMES = {
    "diffpure": {"steps": 2, "t_delta": 0.01},
    "langevin": {"steps": 2},
    "gdmp": {"steps": 2, "passes": 2, "scale": 100.0},
    "gradual": {"stages": (30, 50), "steps": (1, 2)},
    "purify++": {"steps": 3},
    "adp": {"steps": 2},
    "likelihood": {"steps": 2},
}


class Conditional(nn.Module):
    """A network with two classes, for the classifier."""

    def forward(self, x, labels, classes):
        return x * (0.5 + 0.1 * classes[:, None, None, None])


@pytest.fixture
def asked(monkeypatch):
    """asked[(key, counter)]: the uses of those numbers, in order: (whether they are normals, the object that asked)."""
    found = {}
    real = noise.philox

    def philox(counter, key):
        frame = sys._getframe(1)
        normals = frame.f_code.co_name == "standard_normal"
        while "self" not in frame.f_locals:  # out of the functions that only pass a request on
            frame = frame.f_back
        owner = frame.f_locals["self"]
        words = torch.broadcast_tensors(*map(torch.as_tensor, (*key, *counter)))
        for row in torch.stack(words, -1).reshape(-1, 6).tolist():
            found.setdefault(tuple(row), []).append((normals, getattr(owner, "settings", owner)))
        return real(counter, key)

    monkeypatch.setattr(noise, "philox", philox)
    return found


REPEATED = (KeyedBrownian, DiffusionClassifier)
"""A path is asked the same again and again, and all classes see the same noise."""


def meetings(asked):
    """What two objects ask for, or one twice where it draws normals. Keys may be derived anew."""
    return [
        [type(owner).__name__ for _, owner in uses]
        for uses in asked.values()
        if len({id(owner) for _, owner in uses}) > 1
        or (len(uses) > 1 and uses[0][0] and not isinstance(uses[0][1], REPEATED))
    ]


def defence(score):
    """All schemes and solvers in one row, rows inside rows, in front of a smoothed classifier that draws itself."""
    schemes = [PURIFIERS[name](score, **SCHEMES.get(name, {})) for name in PURIFIERS]
    ways = [DiffPure(score, 0.1, 3, solver=name) for name in SOLVERS]
    ways.append(DiffPure(score, 0.1, 2, solver=TorchSDE(adaptive=True, rtol=0.1, atol=0.1)))
    row = Sequential([*schemes, Sequential([*ways, Sequential(schemes[:2])]), Resized(schemes[0], (6, 6))])
    classes = ScoreModel(Conditional(), LinearVP(), classes=2)
    return DefendedClassifier(row, Smoothed(DiffusionClassifier(classes, times=2), 0.1), copies=2)


@torch.no_grad()
def test_no_two_draws_meet(asked):
    schedule = LinearVP()
    model = defence(ScoreModel(GaussianNoise(schedule, 0.2, 0.5), schedule, "noise").float())
    x, keys = torch.rand(2, 1, 4, 4), noise.noise_keys(0, range(2), 0)
    model.predict(x, 2, keys)
    Smoothed(Smoothed(model, 0.1), 0.1)(x, keys)
    owners = {type(owner) for uses in asked.values() for _, owner in uses}
    assert {KeyedBrownian, DiffusionClassifier, DefendedClassifier, Sequential, Smoothed} <= owners  # all were asked
    assert meetings(asked) == []
