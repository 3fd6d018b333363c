"""Likelihood maximisation: Adam on the diffusion loss in a ball, with second derivatives of the network."""

import golden
import pytest
import torch

from purify import Likelihood, ScoreModel, noise_keys
from purify.networks.gaussian import GaussianNoise
from purify.noise import Purpose, Stage, derive_keys, standard_normal, uniform
from purify.schedules import EDM, VE, LinearVP

KEYS = noise_keys(0, torch.arange(3), 0)
X = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def gradient(purifier, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((purifier(x, KEYS) * WEIGHT.to(x.dtype)).sum(), x)[0]


@pytest.mark.parametrize("schedule", [LinearVP(), EDM()], ids=["vp", "edm"])
@pytest.mark.parametrize("eta", [1.0, 0.05])
def test_steps_are_adams_on_the_loss_of_gaussian_data(schedule, eta):
    """For a linear denoiser the loss is quadratic, with a gradient that can be written down; the schedule does not
    matter.
    """
    score = ScoreModel(GaussianNoise(schedule, 0.2, 0.5), schedule, "noise")
    image = 2 * torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    x, m, v = image, 0.0, 0.0
    for step in range(3):
        own = derive_keys(KEYS, step, 0, Purpose.ROUND)
        sigma = (0.4 + 0.2 * uniform(own, Purpose.TIME)).reshape(3, 1, 1, 1)
        noise = standard_normal(own, Stage.LOSS, 0, (1, 4, 4), torch.float64)
        kept = 0.25 / (0.25 + sigma**2)
        error = 0.2 + kept * (x + sigma * noise - 0.2) - x
        slope = 2 / 16 * (kept - 1) * error
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        x = x - 0.1 * (m / (1 - 0.9 ** (step + 1))) / (v / (1 - 0.999 ** (step + 1))).sqrt()
        x = image + (x - image).clamp(-2 * eta, 2 * eta)
    torch.testing.assert_close(Likelihood(score, 3, eta=eta)((image + 1) / 2, KEYS), (x + 1) / 2, rtol=0, atol=1e-8)


def test_it_goes_to_where_the_density_is_higher(gaussian_score):
    """Uphill on average, and never out of the ball."""
    score, x = gaussian_score(0.0, 0.2), torch.rand(64, 1, 8, 8, dtype=torch.float64)
    keys = noise_keys(0, torch.arange(64), 0)
    purified = Likelihood(score)(x, keys)
    assert (purified - x).abs().max() <= 8 / 255 + 1e-12
    before, after = ((2 * images - 1).square().mean() for images in (x, purified))
    assert after < 0.95 * before
    assert Likelihood(score, 20, eta=1.0)(x, keys).sub(0.5).square().mean() < 0.5 * before / 4


def test_published_defaults(unet_score):
    purifier = Likelihood(unet_score)
    assert (purifier.steps, purifier.step_size, purifier.eta, purifier.sigma_min, purifier.sigma_max) == (
        5,
        0.1,
        8 / 255,
        0.4,
        0.6,
    )
    calls = []
    unet_score.network.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        purifier(X, KEYS)
    assert len(calls) == 5


@pytest.mark.parametrize("eta", [1.0, 0.03])
def test_gradient_is_exact_through_second_derivatives(unet_score, eta):
    """A network with attention: against backprop and finite differences, inside the ball and at its border."""
    score, x, h = unet_score.double(), X.double(), 1e-7
    exact, backprop = (gradient(Likelihood(score, 3, mode, eta=eta), x) for mode in ("exact", "backprop"))
    assert golden.relative_error(exact, backprop) < 1e-14
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    purifier = Likelihood(score, 3, eta=eta)
    with torch.no_grad():
        difference = ((purifier(x + h * direction, KEYS) - purifier(x - h * direction, KEYS)) * WEIGHT).sum() / (2 * h)
    torch.testing.assert_close((exact * direction).sum(), difference, rtol=1e-4, atol=0)
    functional = torch.func.grad(lambda y: (purifier(y, KEYS) * WEIGHT).sum())(x)
    torch.testing.assert_close(functional, exact, rtol=0, atol=1e-10 * float(exact.abs().max()))
    if eta == 1:
        assert golden.relative_error(exact, WEIGHT) > 0.01  # more than the identity


def test_single_precision(unet_score):
    exact, backprop = (gradient(Likelihood(unet_score, 2, mode, eta=1.0), X) for mode in ("exact", "backprop"))
    assert golden.relative_error(exact, backprop) < 1e-6


def test_modes_share_values_parameters_stay_and_batches_do_not_matter(unet_score):
    unet_score.network.requires_grad_(True)
    values = [
        Likelihood(unet_score, 2, mode)(X.clone().requires_grad_(), KEYS) for mode in ("exact", "backprop", "bpda")
    ]
    assert all(torch.equal(values[0], value) for value in values[1:])
    values[0].sum().backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in unet_score.network.parameters())
    purifier = Likelihood(unet_score.double(), 2, eta=1.0)
    with torch.no_grad():
        torch.testing.assert_close(
            purifier(X[1:2].double(), KEYS[1:2]), purifier(X.double(), KEYS)[1:2], rtol=0, atol=1e-7
        )


def test_bad_arguments(unet_score):
    for arguments, message in (
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"eta": 0.0}, "eta must be a positive number, got 0.0"),
        ({"step_size": -0.1}, "step_size must be a positive number, got -0.1"),
        ({"sigma_min": 0.7}, "sigma_min and sigma_max must be noise levels"),
        (
            {"sigma_max": 1e9},
            "half of sigma_max=5e\\+08 is beyond .* the most noise that the score network was trained on",
        ),
        ({"gradient": "adjoint"}, 'gradient="adjoint" needs a solver that has one'),
    ):
        with pytest.raises(ValueError, match=message):
            Likelihood(unet_score, **arguments)
    with pytest.raises(ValueError, match="half of sigma_min=0.0005 is below 0.005, the least noise of VE"):
        Likelihood(ScoreModel(GaussianNoise(VE()), VE(), "noise"), sigma_min=0.001, sigma_max=0.1)
    with pytest.raises(ValueError, match="Likelihood does not tell its states on the way"):
        Likelihood(unet_score).trajectory(X, KEYS)
