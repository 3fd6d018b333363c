"""Purifiers one after another: each stage's randomness is its own, values and gradients are those of the
composition.
"""

import golden
import pytest
import torch
from torch import nn

from purify import DefendedClassifier, DiffPure, Langevin, Resized, Sequential, noise_keys
from purify.noise import Purpose, derive_keys

KEYS = noise_keys(0, torch.arange(3), 0)
X = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def gradient(purifier, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((purifier(x, KEYS) * WEIGHT.to(x.dtype)).sum(), x)[0]


def mixed(score, mode):
    return Sequential(
        [DiffPure(score, 0.1, 3, mode), Langevin(score, 2, mode), Resized(DiffPure(score, 0.05, 2, mode), (24, 24))]
    )


def test_stages_follow_one_another_with_keys_of_their_own(unet_score):
    stages = mixed(unet_score, "exact")
    x = X
    with torch.no_grad():
        for index, stage in enumerate(stages.purifiers):
            x = stage(x, derive_keys(KEYS, index, 0, Purpose.ROUND))
        assert torch.equal(stages(X, KEYS), x)


def test_repetition_is_known_for_gaussian_data(gaussian_score):
    """Without noise on the way back a stage is affine with a known slope, and three are its cube."""
    one = DiffPure(gaussian_score(0.2, 0.5), 0.2, 5, eta=0.0)
    x, keys = torch.rand(4, 1, 2, 2, dtype=torch.float64), noise_keys(0, torch.arange(4), 0)
    slopes = []
    for purifier in (one, Sequential([one] * 3)):
        y = x.clone().requires_grad_()
        slopes.append(torch.autograd.grad(purifier(y, keys).sum(), y)[0])
    torch.testing.assert_close(slopes[1], slopes[0] ** 3, rtol=1e-12, atol=0)
    noise = one(x, keys) - Sequential([one])(x, keys)
    assert noise.abs().min() > 1e-4  # a stage's noise is not that of the purifier alone under the same keys


def test_exact_equals_backprop_bitwise(unet_score):
    exact, backprop = (
        gradient(Sequential([DiffPure(unet_score, 0.1, 3, mode)] * 3), X) for mode in ("exact", "backprop")
    )
    assert torch.equal(exact, backprop)
    exact, backprop = (gradient(mixed(unet_score.double(), mode), X.double()) for mode in ("exact", "backprop"))
    assert golden.relative_error(exact, backprop) < 1e-14  # a guided stage adds its parts in another order


def test_an_image_does_not_depend_on_its_batch(unet_score):
    stages = mixed(unet_score.double(), "exact")
    with torch.no_grad():
        torch.testing.assert_close(
            stages(X[1:2].double(), KEYS[1:2]), stages(X.double(), KEYS)[1:2], rtol=0, atol=1e-12
        )


def test_calls_without_keys_are_random_reproducible_and_independent_between_stages(gaussian_score):
    score, x = gaussian_score(), torch.full((64, 1, 8, 8), 0.5, dtype=torch.float64)

    def make(seed=0):
        return Sequential([DiffPure(score, 0.2, 5), DiffPure(score, 0.2, 5)], seed=seed)

    stages, again = make(), make()
    first, second = stages(x), stages(x)
    assert torch.equal(again(x), first) and torch.equal(again(x), second)
    assert (first - second).abs().mean() > 0.05 and (make(seed=1)(x) - first).abs().mean() > 0.05
    # Two stages whose own counters agree must not share their noise.
    inside, alpha = stages.trajectory(x, points=2), score.schedule.alpha(0.2)
    noise = torch.stack([inside.noised[0].flatten(), (inside.noised[2] - alpha * inside.states[1]).flatten()])
    assert abs(torch.corrcoef(noise)[0, 1]) < 0.06


def test_the_trajectory_is_that_of_all_stages(unet_score):
    stages = Sequential([DiffPure(unet_score.double(), 0.1, 3), DiffPure(unet_score.double(), 0.05, 4)])
    inside = stages.trajectory(X.double(), KEYS, points=3, estimates=True)
    assert inside.states.shape == inside.noised.shape == (6, 3, 1, 28, 28) and inside.estimates.shape == (
        4,
        3,
        1,
        28,
        28,
    )
    assert torch.equal(inside.result, stages(X.double(), KEYS)) and torch.equal(inside.result, inside.states[-1])
    second = stages.purifiers[1].trajectory(inside.states[2], derive_keys(KEYS, 1, 0, Purpose.ROUND), points=3)
    assert torch.equal(inside.states[3:], second.states) and torch.equal(inside.noised[3:], second.noised)
    assert stages.trajectory(X.double(), KEYS).estimates is None

    def loss(x):
        inside = stages.trajectory(x, KEYS)
        return ((inside.states - inside.noised).square() * WEIGHT).sum()

    x, direction, h = X.double().requires_grad_(), WEIGHT.double(), 1e-5
    slope = (torch.autograd.grad(loss(x), x)[0] * direction).sum()
    with torch.no_grad():
        difference = (loss(X.double() + h * direction) - loss(X.double() - h * direction)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-7, atol=0)


def test_it_takes_a_purifiers_place(unet_score):
    model = DefendedClassifier(Resized(Sequential([DiffPure(unet_score, 0.1, 2)] * 2), (28, 28)), nn.Flatten())
    assert model(torch.rand(3, 1, 24, 24), KEYS).shape == (3, 576)
    assert Sequential([DiffPure(unet_score, 0.1, 2)]).score is unet_score
    assert Sequential([Resized(DiffPure(unet_score, 0.1, 2), (28, 28))]).score is unet_score


def test_bad_input(unet_score):
    for purifiers in ([], DiffPure(unet_score, 0.1, 2), [lambda x, keys: x]):
        with pytest.raises(ValueError, match="purifiers must be a list of at least one purifier, got"):
            Sequential(purifiers)
    stages = Sequential([DiffPure(unet_score, 0.1, 2), nn.Identity()])
    with pytest.raises(ValueError, match=r"keys must be int64 of shape \(3,\), one for each image, got torch.float32"):
        stages(X, KEYS.float())
    with pytest.raises(ValueError, match="stage 1, Identity, has no method `trajectory`"):
        stages.trajectory(X, KEYS)
    with pytest.raises(ValueError, match=r"x must be images of shape \(b, 1, h, w\)"):
        stages(X[0], KEYS[:1])
