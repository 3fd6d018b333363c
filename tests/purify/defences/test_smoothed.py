"""One draw of randomised smoothing: what noise is added, and what the denoiser makes of it."""

import math

import pytest
import torch
from torch import nn

from purify import DefendedClassifier, DiffPure, ScoreModel, noise_keys
from purify.defences.smoothed import DenoisedSmoothing, Smoothed, smoothing_time
from purify.networks.gaussian import GaussianNoise
from purify.noise import Stage, standard_normal
from purify.schedules import EDM, VE, DiscreteVP, Functions, LinearVP, SubVP

LATE = Functions(torch.ones_like, lambda t: 1.0 * t, t_max=2.0, t_min=0.3)
SCHEDULES = [
    LinearVP(),
    DiscreteVP.linear(),
    SubVP(),
    VE(),
    EDM(),
    Functions(lambda t: 1 / (1 + t), lambda t: t**2, t_max=2.0),
]
X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
KEYS = noise_keys(0, torch.arange(6), 0)


def noise(keys=KEYS, x=X):
    return standard_normal(keys, Stage.SMOOTHING, 0, tuple(x.shape[1:]), x.dtype)


def exact(schedule, mean=0.2, std=0.5, value_range=(-1.0, 1.0)):
    return ScoreModel(GaussianNoise(schedule, mean, std), schedule, value_range=value_range)


def test_a_draw_is_the_base_classifier_on_the_noisy_image():
    assert torch.equal(Smoothed(nn.Flatten(), 0.3)(X, keys=KEYS), (X + 0.3 * noise()).flatten(1))
    assert torch.equal(Smoothed(lambda images: images.flatten(1), 0.3)(X, keys=KEYS), (X + 0.3 * noise()).flatten(1))


def test_the_noise_is_normal_with_deviation_sigma():
    draws = (
        Smoothed(nn.Flatten(), 0.3)(torch.full((20_000, 1, 2, 2), 0.5), keys=noise_keys(1, torch.arange(20_000), 0))
        - 0.5
    )
    assert draws.mean().abs() < 4 * 0.3 / math.sqrt(80_000)
    assert draws.std() == pytest.approx(0.3, rel=4 / math.sqrt(160_000))
    assert (draws > 0.3).double().mean() == pytest.approx(0.158655, abs=0.005)
    correlation = torch.corrcoef(draws.T) - torch.eye(4)
    assert correlation.abs().max() < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_the_denoised_image_is_the_posterior_mean(schedule, value_range, sigma):
    """Gaussian data on the diffusion's scale: E[x_0 | z = x_0 + c n] = (std^2 z + c^2 mean) / (std^2 + c^2), c = sigma
    times the width of the range.
    """
    low, high = value_range
    smoothed = DenoisedSmoothing(exact(schedule, 0.2, 0.5, value_range), nn.Flatten(), sigma)
    z, c = (X + sigma * noise()) * (high - low) + low, sigma * (high - low)
    posterior = (0.25 * z + c**2 * 0.2) / (0.25 + c**2)
    torch.testing.assert_close(
        smoothed(X, keys=KEYS), ((posterior - low) / (high - low)).flatten(1), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_noised_image_is_one_of_the_forward_process(schedule):
    """alpha (x + sigma n) on the diffusion's scale is a draw of its marginal at t: noise-to-signal ratio 2 sigma on
    [-1, 1].
    """
    score = exact(schedule)
    t = smoothing_time(score, 0.25)
    assert schedule.sigma(t) / schedule.alpha(t) == pytest.approx(0.5, rel=1e-10)
    expected = score.to_unit(score.denoised(score.diffuse(score.from_unit(X), noise(), t), t))
    torch.testing.assert_close(
        DenoisedSmoothing(score, nn.Flatten(), 0.25)(X, keys=KEYS), expected.flatten(1), rtol=0, atol=1e-12
    )


def test_gradients_of_the_oracle():
    """Each denoised pixel moves by std^2 / (std^2 + c^2) of its own pixel: the logit (w, denoised) has the gradient w
    times that.
    """
    w = torch.randn(64, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = X.clone().requires_grad_()
    DenoisedSmoothing(exact(LinearVP()), lambda images: images.flatten(1) @ w, 0.25)(x, keys=KEYS).sum().backward()
    torch.testing.assert_close(x.grad, (w.T * 0.25 / (0.25 + 0.25)).expand(6, -1).reshape(X.shape), rtol=0, atol=1e-12)


def test_gradients_through_a_network(unet_score):
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    smoothed = DenoisedSmoothing(unet_score.double(), nn.Sequential(nn.Flatten(), nn.Linear(784, 3)).double(), 0.25)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x = images.requires_grad_()
    smoothed(x, keys=KEYS[:2]).square().sum().backward()
    with torch.no_grad():
        up, down = (smoothed(images + step * direction, keys=KEYS[:2]).square().sum() for step in (1e-5, -1e-5))
    assert float((x.grad * direction).sum()) == pytest.approx(float(up - down) / 2e-5, rel=1e-7)
    assert not smoothed.score.training and all(p.grad is None for p in smoothed.score.parameters())


def test_a_draw_depends_on_image_and_key_alone():
    smoothed = DenoisedSmoothing(exact(LinearVP()), nn.Flatten(), 0.25)
    whole = smoothed(X, keys=KEYS)
    parts = torch.cat([smoothed(x, keys=k) for x, k in zip(X.split(4), KEYS.split(4), strict=True)])
    assert torch.equal(parts, whole)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    assert torch.equal(smoothed(X[order], keys=KEYS[order]), whole[order])


def test_calls_without_keys_are_random_and_reproducible():
    first, again, other = (Smoothed(nn.Flatten(), 0.25, seed) for seed in (0, 0, 1))
    draws = [first(X), first(X)]
    assert (draws[0] - draws[1]).abs().max() > 0.1
    assert torch.equal(again(X), draws[0]) and torch.equal(again(X), draws[1])
    assert (other(X) - draws[0]).abs().max() > 0.1


def test_a_random_base_gets_the_keys_and_has_noise_of_its_own(gaussian_score):
    """A purifier's own noise and the smoothing's must be independent, though they share a key."""
    defended = DefendedClassifier(DiffPure(gaussian_score(), 0.2, 4), nn.Flatten())
    smoothed = Smoothed(defended, 0.25)
    assert torch.equal(smoothed(X, keys=KEYS), defended(X + 0.25 * noise(), keys=KEYS))
    keys = noise_keys(0, torch.arange(500), 0)
    many = X[:1].expand(500, -1, -1, -1)
    logits = defended(many, keys=keys)
    pair = torch.stack([(logits - logits.mean(0)).flatten(), noise(keys, many).flatten()])
    assert torch.corrcoef(pair)[0, 1].abs() < 4 / math.sqrt(pair.shape[1])


def test_the_largest_noise_of_the_training_is_allowed():
    score = exact(LinearVP())
    score.t_max = 0.3
    largest = LinearVP().sigma(0.3) / LinearVP().alpha(0.3) / 2
    assert smoothing_time(score, largest) == pytest.approx(0.3, abs=1e-12) and smoothing_time(score, largest) <= 0.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Smoothed(nn.Flatten(), 0.0), "sigma must be a positive number"),
        (lambda: Smoothed(nn.Flatten(), math.nan), "sigma must be a positive number"),
        (
            lambda: Smoothed("classifier", 0.25),
            "the base classifier must be a module or a function from images to logits, got str",
        ),
        (
            lambda: DenoisedSmoothing(exact(VE()), nn.Flatten(), 0.004),
            "sigma=0.004 is below 0.005, the least noise of VE",
        ),
        (
            lambda: DenoisedSmoothing(exact(EDM(3.0)), nn.Flatten(), 2.0),
            r"sigma=2 is beyond 1.5, the most noise that the score network was trained on \(t_max=3\)",
        ),
        (
            lambda: DenoisedSmoothing(ScoreModel(nn.Identity(), EDM(), classes=10), nn.Flatten(), 0.25),
            "choose one by score.with_class",
        ),
        (lambda: Smoothed(nn.Flatten(), 0.25)(X[0]), r"x must be images of shape \(b, c, h, w\), got \(1, 8, 8\)"),
        (lambda: Smoothed(nn.Flatten(), 0.25)(X.long()), "x must be floating point"),
        (lambda: Smoothed(nn.Flatten(), 0.25)(X, keys=KEYS[:2]), r"keys must be int64 of shape \(6,\)"),
        (lambda: Smoothed(nn.Flatten(), 0.25)(X, keys=KEYS.double()), r"keys must be int64 of shape \(6,\)"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_channels_that_do_not_fit(unet_score):
    with pytest.raises(ValueError, match=r"\(b, 1, h, w\), got \(2, 3, 28, 28\)"):
        DenoisedSmoothing(unet_score, nn.Flatten(), 0.25)(torch.rand(2, 3, 28, 28))
