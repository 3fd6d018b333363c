"""Losses inside the model: their gradient against plain autograd, known optima, and the models that offer nothing
inside.
"""

import warnings
from types import SimpleNamespace

import pytest
import torch
from attack_models import BehindNoise, Linear, images, keyed_noise
from torch import nn

from attacks import L2, Linf, count_cost
from attacks.expectation import Expectation
from attacks.gradient.deviated import DeviatedReconstruction, _Inside
from attacks.losses import cross_entropy, margin
from attacks.randomness import mix
from purify import DefendedClassifier, DiffPure, Langevin, Resized

X, Y = images(), torch.zeros(6, dtype=torch.int64)
KEYS = torch.arange(6)


class Transparent(nn.Module):
    """A classifier behind noise of the key that shows three points: nothing done, an error x - 1/2, twice that;
    estimates are the image itself.
    """

    def __init__(self, classifier, sigma=0.05):
        super().__init__()
        self.classifier = classifier
        self.sigma = sigma
        self.seen = []

    def forward(self, x, keys=None):
        self.seen.append(keys)
        return self.classifier(x + self.sigma * keyed_noise(keys, x.shape[1:], x.dtype))

    def trajectory(self, x, keys, points, estimates):
        noised = torch.stack([x + self.sigma * keyed_noise(keys, x.shape[1:], x.dtype)] * 3)
        factors = torch.tensor([0.0, 1.0, 2.0], dtype=x.dtype)[:, None, None, None, None]
        logits = torch.stack([self.classifier(x)] * 2) if estimates else None
        return SimpleNamespace(
            result=self(x, keys), noised=noised, states=noised + factors * (x - 0.5), estimates=logits
        )


class Constant(nn.Module):
    """A classifier without gradient."""

    def forward(self, x):
        return x.new_tensor([[1.0, 0.0]]).expand(len(x), 2) + 0 * x.sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("targets", [None, 1 - Y])
@pytest.mark.parametrize("estimates", [0.0, 0.7])
def test_gradient_is_that_of_the_sum_of_losses(targets, estimates):
    """Against a plain loop over the same draws, whatever the size of the calls."""
    model = Transparent(Linear())
    expected, mean = torch.zeros_like(X), torch.zeros(6, dtype=X.dtype)
    for draw in range(3):
        x = X.clone().requires_grad_()
        deviation = (1**2 + 2**2) / 2 * (x - 0.5).square().mean((1, 2, 3))
        losses = (
            cross_entropy(model(x, mix(KEYS, draw)), Y, targets)
            + 2.5 * deviation
            + estimates * cross_entropy(Linear()(x), Y, targets)
        )
        expected += torch.autograd.grad(losses.sum(), x)[0] / 3
        mean += losses.detach() / 3
    for batch_size in (1, 4, 1000):
        attack = DeviatedReconstruction(Linf(0.1), eot=3, weight=2.5, estimates=estimates, batch_size=batch_size)
        gradient, value, success = _Inside(attack, model, Y, targets).gradient(X, KEYS, cross_entropy)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(value, mean, rtol=1e-10, atol=1e-12)
        assert torch.equal(success, Expectation(model, Y, 3, 1000, targets).success(X, KEYS))


def test_the_deviation_leads_where_the_classifier_has_no_gradient():
    """The largest mean square of x - 1/2 moves every pixel away from 1/2, as far as the ball and the box allow."""
    x = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x_adv = DeviatedReconstruction(Linf(0.1), iterations=20, eot=2)(Transparent(Constant()), x, Y, start=x)
    torch.testing.assert_close(x_adv, (x + 0.1 * (x - 0.5).sign()).clamp(0, 1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.2)], ids=["Linf", "L2"])
@pytest.mark.parametrize("estimates", [0.0, 1.0])
def test_optimum_of_a_linear_classifier_behind_a_purifier_of_gaussian_data(gaussian_score, threat, estimates):
    """Every draw's margin is linear in the image with one gradient, and no deviation of weight 0 leads away."""
    model = DefendedClassifier(DiffPure(gaussian_score(0.0, 0.5), 0.1, 3), Linear())
    y = model(X, KEYS).argmax(1)
    attack = DeviatedReconstruction(threat, iterations=10, eot=2, weight=0.0, estimates=estimates, loss="margin")
    x_adv = attack(model, X, y)
    w = Linear().w
    best = threat.epsilon * (w.abs().sum() if isinstance(threat, Linf) else w.norm())
    toward = torch.where(y == 0, 1.0, -1.0)
    assert (toward * ((x_adv - X) * w).sum((1, 2, 3)) / best > 0.99).all()
    assert (threat.distance(x_adv, X) <= threat.epsilon * (1 + 1e-9)).all()


def test_targeted():
    """The goal is the target: on three classes, none but it counts."""
    w = torch.randn(3, 108, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    class Three(nn.Module):
        def forward(self, x):
            return (x - 0.5).flatten(1) @ w.T

    y = Three()(X).argmax(1)
    targets = (y + 1) % 3
    x_adv = DeviatedReconstruction(Linf(0.1), iterations=10, eot=2)(Transparent(Three()), X, y, targets=targets)
    assert (Three()(x_adv).argmax(1) == targets).all()


def test_every_purifier_of_ours_fits_the_protocol(unet_score):
    torch.manual_seed(0)
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    for purifier in (
        DiffPure(unet_score, 0.1, 2),
        Langevin(unet_score, 2),
        Resized(DiffPure(unet_score, 0.1, 2), (32, 32)),
    ):
        model = DefendedClassifier(purifier, classifier)
        y = model(x, KEYS[:2]).argmax(1)
        x_adv = DeviatedReconstruction(Linf(0.1), iterations=2, eot=2, estimates=1.0)(model, x, y)
        assert (Linf(0.1).distance(x_adv, x) <= 0.1001).all()
        fresh = Expectation(model, y, 4, 64)
        assert (fresh.loss(x_adv, KEYS[:2], margin) > fresh.loss(x, KEYS[:2], margin)).all()


def test_cost_is_the_calls_made_and_no_draw_is_the_callers():
    model = Transparent(Linear())
    with count_cost() as cost:
        DeviatedReconstruction(Linf(0.02), iterations=4, eot=3, restarts=2)(model, X, Y, keys=KEYS)
    assert cost.forward == sum(len(keys) for keys in model.seen)
    assert cost.backward == 2 * 4 * 3 * len(X)
    assert not set(torch.cat(model.seen).tolist()) & set(range(6))


def test_result_depends_on_keys_not_on_the_batch():
    keys = KEYS + 100
    attack = DeviatedReconstruction(L2(0.5), iterations=2, eot=3, restarts=2, batch_size=5)
    whole = attack(Transparent(Linear()), X, Y, keys=keys)
    for i in range(0, 6, 2):
        torch.testing.assert_close(
            attack(Transparent(Linear()), X[i : i + 1], Y[i : i + 1], keys=keys[i : i + 1]), whole[i : i + 1]
        )
    assert not torch.equal(attack(Transparent(Linear()), X, Y, keys=keys + 1), whole)
    assert whole.requires_grad is False


def test_images_that_are_surely_broken_leave():
    model = Transparent(Linear(), sigma=1e-4)
    y = 1 - Linear()(X).argmax(1)  # wrong from the start
    with count_cost() as cost:
        DeviatedReconstruction(Linf(0.001), iterations=50, eot=2, stop_draws=4)(model, X, y)
    assert cost.backward == 2 * 6 and cost.forward == (2 + 4) * 6


def test_progress_counts_gradients():
    seen = []
    DeviatedReconstruction(Linf(0.1), iterations=3, eot=1, restarts=2)(
        Transparent(Linear()), X, Y, progress=lambda *at: seen.append(at)
    )
    assert seen == [(i, 6) for i in range(1, 7)]


def test_dead_gradients_warn_and_healthy_ones_do_not():
    with pytest.warns(UserWarning, match="gradient was exactly zero for 6 of 6 images"):
        DeviatedReconstruction(Linf(0.1), iterations=2, eot=1, weight=0.0)(Transparent(Constant()), X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DeviatedReconstruction(Linf(0.1), iterations=2, eot=1)(Transparent(Linear()), X, Y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iterations": 0}, "iterations must be a positive integer, got 0"),
        ({"loss": "cw"}, "loss='cw' is not one of ce, margin, dlr"),
        ({"points": 1}, "points must be an integer from 2, got 1"),
        ({"weight": -1.0}, "weight must be a number from 0, got -1.0"),
        ({"estimates": float("nan")}, "estimates must be a number from 0, got nan"),
        ({"stop_draws": -1}, "stop_draws must be an integer from 0, got -1"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeviatedReconstruction(Linf(0.1), **arguments)


def test_models_that_cannot_be_looked_into(unet_score):
    with pytest.raises(
        ValueError,
        match="DeviatedReconstruction looks inside the model, but BehindNoise has no trajectory: see attacks.protocols",
    ):
        DeviatedReconstruction(Linf(0.1))(BehindNoise(Linear(), 0.1), X, Y)
    x = torch.rand(2, 1, 28, 28)
    model = DefendedClassifier(DiffPure(unet_score, 0.1, 4, "bpda"), nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    with pytest.raises(ValueError, match='gradient="exact" or "backprop" only, got gradient=\'bpda\''):
        DeviatedReconstruction(Linf(0.1))(model, x, Y[:2])
