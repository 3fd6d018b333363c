"""ADP: for Gaussian data a step goes a known share of the way, whatever the level and the scale."""

import golden
import pytest
import torch

from purify import ADP, ScoreModel, noise_keys
from purify.networks.gaussian import GaussianNoise
from purify.noise import Stage, standard_normal
from purify.schedules import EDM, LinearVP

KEYS = noise_keys(0, torch.arange(3), 0)
X = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("schedule", "value_range"), [(LinearVP(), (-1.0, 1.0)), (EDM(), (-1.0, 1.0)), (EDM(), (0.0, 1.0))]
)
def test_a_step_goes_a_share_of_the_way_to_the_mean(schedule, value_range):
    score = ScoreModel(GaussianNoise(schedule, 0.2, 0.3), schedule, "noise", value_range=value_range)
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    mean = score.to_unit(torch.tensor(0.2, dtype=torch.float64))
    noisy = x + 0.25 * standard_normal(KEYS, Stage.FORWARD, 0, (1, 4, 4), torch.float64)
    purified = ADP(score, 10, lam=0.05)(x, KEYS)
    torch.testing.assert_close(purified, mean + 0.95**10 * (noisy - mean), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        torch.autograd.grad(purified.sum(), x)[0], torch.full_like(x, 0.95**10), rtol=1e-6, atol=0
    )


def test_steps_are_bounded_and_end(gaussian_score):
    """A step is at most 0.1 of the direction; one that would be shorter than `stop` is none."""
    score = gaussian_score(0.2, 0.5)
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    long = ADP(score, 1, sigma=0.0, lam=100.0)
    direction = -score.noise(score.schedule.alpha(long.t) * (2 * x - 1), long.t)
    torch.testing.assert_close(long(x, KEYS), x + 0.1 * direction, rtol=0, atol=1e-12)
    torch.testing.assert_close(ADP(score, 5, sigma=0.0, lam=0.05, stop=0.09)(x, KEYS), x, rtol=0, atol=1e-15)


def test_published_defaults(unet_score):
    purifier = ADP(unet_score)
    assert (purifier.sigma, purifier.steps, purifier.delta, purifier.stop) == (0.25, 10, 1e-3, 1e-3)
    assert purifier.lam == 0.2  # published: 0.05, for a network that is not told its noise level
    assert unet_score.schedule.sigma(purifier.t) / unet_score.schedule.alpha(purifier.t) == pytest.approx(0.5)
    calls = []
    unet_score.network.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        purifier(X, KEYS)
    assert len(calls) == 20


def test_gradients(unet_score):
    """Bitwise those of backprop, and finite differences: the lengths of the steps depend on the image too."""
    gradients = []
    for mode in ("exact", "backprop"):
        x = X.clone().requires_grad_()
        gradients.append(torch.autograd.grad(ADP(unet_score, 3, mode, lam=0.5)(x, KEYS).square().sum(), x)[0])
    assert torch.equal(*gradients)
    purifier, h = ADP(unet_score.double(), 3, lam=0.01), 1e-5
    x, direction = (
        X.double().requires_grad_(),
        torch.randn(X.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
    )
    slope = (torch.autograd.grad(purifier(x, KEYS).square().sum(), x)[0] * direction).sum()
    with torch.no_grad():
        difference = (
            purifier(x + h * direction, KEYS).square().sum() - purifier(x - h * direction, KEYS).square().sum()
        ) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=0)


def test_modes_share_values_and_batches_do_not_matter(unet_score):
    values = [ADP(unet_score, 3, mode)(X.clone().requires_grad_(), KEYS) for mode in ("exact", "backprop", "bpda")]
    assert all(torch.equal(values[0], value) for value in values[1:])
    purifier = ADP(unet_score.double(), 3)
    with torch.no_grad():
        torch.testing.assert_close(
            purifier(X[1:2].double(), KEYS[1:2]), purifier(X.double(), KEYS)[1:2], rtol=0, atol=1e-10
        )
    assert golden.relative_error(purifier(X.double(), KEYS), X) > 0.1


def test_bad_arguments(unet_score):
    for arguments, message in (
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"sigma": -1.0}, "sigma must be at least 0, got -1.0"),
        ({"level": 0.0}, "level must be a positive number, got 0.0"),
        ({"lam": 0.0}, "lam must be a positive number, got 0.0"),
        ({"delta": 0.0}, "delta must be a positive number, got 0.0"),
        ({"stop": 0.0}, "stop must be a positive number, got 0.0"),
        ({"gradient": "adjoint"}, 'gradient="adjoint" needs a solver that has one'),
    ):
        with pytest.raises(ValueError, match=message):
            ADP(unet_score, **arguments)
    with pytest.raises(ValueError, match="ADP does not tell its states on the way"):
        ADP(unet_score).trajectory(X, KEYS)
