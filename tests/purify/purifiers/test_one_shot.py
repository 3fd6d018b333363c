"""One-shot denoising: the posterior mean."""

import pytest
import torch

from purify import OneShot, ScoreModel, noise_keys
from purify.defences.smoothed import smoothing_time
from purify.networks.gaussian import GaussianNoise
from purify.noise import Stage, standard_normal
from purify.schedules import EDM, VE, LinearVP

KEYS = noise_keys(0, torch.arange(3), 0)
X = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("schedule", [LinearVP(), VE(0.01, 50.0), EDM()], ids=["vp", "ve", "edm"])
def test_it_is_the_posterior_mean(schedule):
    score = ScoreModel(GaussianNoise(schedule, 0.2, 0.5), schedule, "noise")
    t = score.time_of_vp(0.15)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    noisy = alpha * (2 * x - 1) + sigma * standard_normal(KEYS, Stage.FORWARD, 0, (1, 4, 4), torch.float64)
    gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
    purified = OneShot(score, 0.15, time="vp")(x, KEYS)
    torch.testing.assert_close(2 * purified - 1, 0.2 + gain * (noisy - alpha * 0.2), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(purified.sum(), x)[0], torch.full_like(x, gain * alpha), rtol=1e-12, atol=0
    )


def test_it_costs_one_evaluation(unet_score):
    calls = []
    unet_score.network.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        OneShot(unet_score)(X, KEYS)
    assert len(calls) == 1 and OneShot(unet_score).steps == 1


def test_the_papers_noise_and_the_default(unet_score):
    assert smoothing_time(unet_score, 0.25) == pytest.approx(0.145, abs=5e-4)
    assert OneShot(unet_score).t_star == 0.1


def test_exact_equals_backprop_bitwise_and_batches_do_not_matter(unet_score):
    gradients = []
    for mode in ("exact", "backprop"):
        x = X.clone().requires_grad_()
        gradients.append(torch.autograd.grad(OneShot(unet_score, 0.15, mode)(x, KEYS).square().sum(), x)[0])
    assert torch.equal(*gradients) and gradients[0].abs().min() > 0
    each = OneShot(unet_score.double(), torch.tensor([0.1, 0.15, 0.2], dtype=torch.float64))(X.double(), KEYS)
    torch.testing.assert_close(OneShot(unet_score, 0.15)(X[1:2].double(), KEYS[1:2]), each[1:2], rtol=0, atol=1e-12)


def test_the_estimate_of_the_only_step_is_the_result(unet_score):
    inside = OneShot(unet_score.double()).trajectory(X.double(), KEYS, estimates=True)
    torch.testing.assert_close(inside.estimates[0], inside.result, rtol=0, atol=1e-12)


def test_bad_arguments(unet_score):
    for arguments, message in (
        ({"t_star": 1.5}, r"t_star must lie in \(0, 1\], got 1.5"),
        ({"gradient": "adjoint"}, 'gradient="adjoint" needs a solver that has one'),
        ({"time": "none"}, "time='none' is not one of own, vp"),
    ):
        with pytest.raises(ValueError, match=message):
            OneShot(unet_score, **arguments)
