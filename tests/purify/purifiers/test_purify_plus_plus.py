"""Purify++: EDM's sampler as the way back."""

import pytest
import torch

from purify import DiffPure, PurifyPlusPlus, ScoreModel, noise_keys
from purify.networks.gaussian import GaussianNoise
from purify.schedules import EDM
from purify.solvers import Heun

KEYS = noise_keys(0, torch.arange(3), 0)
X = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_defaults_are_edms_for_cifar10(unet_score):
    purifier = PurifyPlusPlus(unet_score)
    assert purifier.solver == Heun(S_churn=30, S_tmin=0.01, S_tmax=1, S_noise=1.007)
    calls = []
    unet_score.network.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        purifier(X, KEYS)
    assert len(calls) == purifier.steps == 19
    assert (purifier.t_star, purifier.grid, purifier.time) == (0.1, "karras", "vp")


def test_without_churn_it_is_the_probability_flow(gaussian_score):
    """Its Jacobian for Gaussian data is known: the ratio of the marginals' deviations times alpha."""
    score, t = gaussian_score(0.2, 0.5), 0.1
    alpha, sigma = score.schedule.alpha(t), score.schedule.sigma(t)
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(PurifyPlusPlus(score, t, 39, S_churn=0.0)(x, KEYS).sum(), x)[0]
    torch.testing.assert_close(
        slope, torch.full_like(x, alpha * 0.5 / (alpha**2 * 0.25 + sigma**2) ** 0.5), rtol=2e-3, atol=0
    )
    same = DiffPure(score, t, 39, solver="heun", grid="karras", time="vp")(x, KEYS)
    assert torch.equal(PurifyPlusPlus(score, t, 39, S_churn=0.0)(x, KEYS), same)


def test_churn_adds_randomness_on_the_way_and_forgets_the_image(gaussian_score):
    score = gaussian_score(0.2, 0.5)
    slopes = []
    for churn in (0.0, 2.0, 8.0):
        x = torch.rand(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
        slopes.append(float(torch.autograd.grad(PurifyPlusPlus(score, 0.1, S_churn=churn)(x, KEYS).mean(), x)[0].sum()))
    assert slopes[0] > 1.02 * slopes[1] > 1.02**2 * slopes[2]


def test_t_star_means_the_same_for_a_network_of_edm(gaussian_score):
    """The same noise for the same signal, so the same purified images, but for where the two grids end."""
    edm = ScoreModel(GaussianNoise(EDM(), 0.2, 0.5), EDM(), "noise")
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(
        PurifyPlusPlus(edm)(x, KEYS), PurifyPlusPlus(gaussian_score(0.2, 0.5))(x, KEYS), rtol=0, atol=1e-4
    )


def test_exact_equals_backprop_bitwise_and_batches_do_not_matter(unet_score):
    gradients = []
    for mode in ("exact", "backprop"):
        x = X.clone().requires_grad_()
        gradients.append(torch.autograd.grad(PurifyPlusPlus(unet_score, 0.1, 5, mode)(x, KEYS).square().sum(), x)[0])
    assert torch.equal(*gradients) and gradients[0].abs().min() > 0
    purifier = PurifyPlusPlus(unet_score.double(), 0.1, 5)
    with torch.no_grad():
        torch.testing.assert_close(
            purifier(X[1:2].double(), KEYS[1:2]), purifier(X.double(), KEYS)[1:2], rtol=0, atol=1e-11
        )


def test_bad_arguments(unet_score):
    for arguments, message in (
        ({"steps": 10}, "got 10; give 9 or 11"),
        ({"S_churn": -1.0}, "S_churn must be at least 0, got -1.0"),
        ({"S_tmin": 2.0}, "S_tmin and S_tmax must be noise levels"),
        ({"t_star": 0.0}, r"t_star must lie in \(0, 1\], got 0.0"),
        ({"gradient": "adjoint"}, 'gradient="adjoint" needs a solver that has one'),
    ):
        with pytest.raises(ValueError, match=message):
            PurifyPlusPlus(unet_score, **arguments)
