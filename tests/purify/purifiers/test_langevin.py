"""The LD-SDE: a scheme guided by the image, whose gradient has a part through every step's guide."""

import golden
import pytest
import torch

from purify import DiffPure, Langevin, Resized, noise_keys
from purify.noise import Stage, standard_normal

KEYS = noise_keys(0, torch.arange(3), 0)
X = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def gradient(purifier, x, weight, keys=KEYS):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((purifier(x, keys) * weight.to(x.dtype)).sum(), x)[0]


def test_path_equals_a_plain_loop(unet_score):
    """The equation of the paper, pixel by pixel, with the published constants."""
    score, x = unet_score.double(), X.double()
    image = state = 2 * x - 1
    for i in range(4):
        z = standard_normal(KEYS, Stage.INCREMENT, i, (1, 28, 28), torch.float64)
        drift = -0.5 * (-score.score(state, 0.01) + (state - image) / 1e-3) * 1e-2
        state = state + drift * 1e-2 + 5 * 1e-2**0.5 * 1e-2**0.5 * z
    torch.testing.assert_close(Langevin(score, 4)(x, KEYS), (state + 1) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_equals_backprop(unet_score, dtype):
    score, x = unet_score.to(dtype), X.to(dtype)
    exact, backprop = (gradient(Langevin(score, 6, mode), x, WEIGHT) for mode in ("exact", "backprop"))
    # Not bitwise: the parts that come through the guide are added up in another order.
    assert golden.relative_error(exact, backprop) < (1e-6 if dtype == torch.float32 else 1e-15)
    functional = torch.func.grad(lambda y: (Langevin(score, 6)(y, KEYS) * WEIGHT.to(dtype)).sum())(x)
    torch.testing.assert_close(functional, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


def test_exact_gradient_matches_finite_differences(unet_score):
    purifier, x, h = Langevin(unet_score.double(), 6), X.double(), 1e-5
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        difference = ((purifier(x + h * direction, KEYS) - purifier(x - h * direction, KEYS)) * WEIGHT).sum() / (2 * h)
    torch.testing.assert_close((gradient(purifier, x, WEIGHT) * direction).sum(), difference, rtol=1e-7, atol=0)


def test_the_guide_is_most_of_the_gradient_and_the_adjoint_has_it(gaussian_score):
    """Gaussian data make every step affine: the Jacobian is known with the pull towards the image, and without it."""
    score, steps = gaussian_score(0.2, 0.5), 100
    t, std2 = 0.01, 0.25
    rate = 1 / (score.schedule.alpha(t) ** 2 * std2 + score.schedule.sigma(t) ** 2)  # the score is -rate (x - mean)
    whole = unguided = 1.0
    for _ in range(steps):
        shrink = 1 - 0.5e-4 * (1e3 + rate)
        whole, unguided = shrink * whole + 0.5e-4 * 1e3, shrink * unguided
    x, ones = torch.rand(3, 1, 4, 4, dtype=torch.float64), torch.ones(3, 1, 4, 4)
    torch.testing.assert_close(gradient(Langevin(score, steps), x, ones), torch.full_like(x, whole), rtol=1e-12, atol=0)
    assert unguided < 0.01 * whole
    torch.testing.assert_close(
        gradient(Langevin(score, steps, "adjoint"), x, ones), torch.full_like(x, whole), rtol=0.05, atol=0
    )


def test_modes_share_values_and_errors_are_clear(unet_score):
    values = [
        Langevin(unet_score, 3, mode)(X.clone().requires_grad_(), KEYS)
        for mode in ("exact", "backprop", "adjoint", "bpda")
    ]
    assert all(torch.equal(values[0], value) for value in values[1:])
    for arguments, message in (
        ({"steps": 0}, "steps must be a positive integer"),
        ({"t": 2.0}, r"t must lie in \(0, t_max=1.0\], got 2.0"),
        ({"sigma2": 0.0}, "sigma2 must be a positive number, got 0.0"),
        ({"eta": -1.0}, "eta must be at least 0"),
        ({"gradient": "none"}, "gradient='none' is not one of exact, backprop, adjoint, bpda"),
    ):
        with pytest.raises(ValueError, match=message):
            Langevin(unet_score, **arguments)


def test_gradients_pass_through_resizes(unet_score):
    """24 -> 28 -> 24: exact equals backprop, and finite differences."""
    x, score = (
        torch.rand(3, 1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(5)),
        unet_score.double(),
    )
    weight = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    exact, backprop = (
        gradient(Resized(DiffPure(score, 0.1, 4, mode), (28, 28)), x, weight) for mode in ("exact", "backprop")
    )
    assert torch.equal(exact, backprop)
    purifier, h = Resized(DiffPure(score, 0.1, 4), (28, 28)), 1e-5
    with torch.no_grad():
        difference = ((purifier(x + h * weight, KEYS) - purifier(x - h * weight, KEYS)) * weight).sum() / (2 * h)
    torch.testing.assert_close((exact * weight).sum(), difference, rtol=1e-7, atol=0)
    assert (exact != 0).all()
    with pytest.raises(ValueError, match=r"size must be \(height, width\), got \(28,\)"):
        Resized(DiffPure(score, 0.1, 4), (28,))
