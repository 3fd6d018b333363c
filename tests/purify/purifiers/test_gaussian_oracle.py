"""Gaussian data: the score is linear, so the purifier is affine and everything about it is known."""

import math

import pytest
import torch

from purify import DiffPure, noise_keys
from purify.solvers.grids import time_grid

MEAN, STD, T_STAR = 0.2, 0.5, 0.3


def euler_moments(schedule, t_star, steps, eta, grid="uniform", mean=MEAN, std=STD):
    """(factor, offset, variance): the purifier on [-1, 1] maps x to factor x + offset + N(0, variance), step by
    step.
    """
    factor, offset, variance = schedule.alpha(t_star), 0.0, schedule.sigma(t_star) ** 2
    times = time_grid(t_star, 1e-5, steps, grid)
    for t, s in zip(times[:-1], times[1:], strict=True):
        dt, f, g2, alpha = s - t, schedule.drift(t), schedule.diffusion(t) ** 2, schedule.alpha(t)
        v = alpha**2 * std**2 + schedule.sigma(t) ** 2
        rate = (1 + eta**2) / 2 * g2 / v  # -score = (x - alpha mean) / v
        a = 1 + dt * (f + rate)
        factor, offset, variance = a * factor, a * offset - dt * rate * alpha * mean, a**2 * variance - eta**2 * g2 * dt
    return factor, offset, variance


@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_mean_covariance_and_jacobian_of_the_discrete_path(gaussian_score, eta, grid):
    score = gaussian_score(MEAN, STD)
    factor, offset, variance = euler_moments(score.schedule, T_STAR, 12, eta, grid)
    images = 4000
    x = torch.full((images, 1, 4, 4), 0.65, dtype=torch.float64, requires_grad=True)
    y = DiffPure(score, T_STAR, 12, eta=eta, grid=grid)(x, noise_keys(0, torch.arange(images), 0))
    (jacobian,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(jacobian, torch.full_like(jacobian, factor), rtol=1e-12, atol=0)

    out = (2 * y - 1).detach().flatten(1)
    count, expected_mean = out.numel(), factor * 0.3 + offset
    assert out.mean().item() == pytest.approx(expected_mean, abs=5 * math.sqrt(variance / count))
    assert out.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / count))
    covariance = out.T.cov() - variance * torch.eye(16)
    assert covariance.fill_diagonal_(0).abs().max() < 5.5 * variance / math.sqrt(images)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_euler_converges_to_the_closed_form_at_first_order(gaussian_score, eta):
    """Flow: alpha s / sqrt(v); reverse SDE: alpha^2 s^2 / v, with v = alpha^2 s^2 + sigma^2 at t_star, both as the
    Jacobian down to t_end.
    """
    score = gaussian_score(MEAN, STD)
    schedule = score.schedule

    def v(t):
        return schedule.alpha(t) ** 2 * STD**2 + schedule.sigma(t) ** 2

    t_end = 1e-5
    flow = schedule.alpha(T_STAR) * math.sqrt(v(t_end) / v(T_STAR))
    closed = flow if eta == 0 else flow**2 / schedule.alpha(t_end)
    errors = []
    for steps in (100, 200, 400):
        x = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
        y = DiffPure(score, T_STAR, steps, eta=eta)(x, noise_keys(0, torch.arange(1), 0))
        errors.append(torch.autograd.grad(y.sum(), x)[0].mean().item() / closed - 1)
    assert abs(errors[-1]) < 0.02
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.1)


def test_srk_converges_at_second_order_without_noise(gaussian_score):
    """torchsde's SRK for additive noise (SRA1) is a second-order Runge-Kutta method where the noise is off."""
    score = gaussian_score(MEAN, STD)
    schedule = score.schedule
    closed = schedule.alpha(T_STAR) * math.sqrt(
        (schedule.alpha(1e-5) ** 2 * STD**2 + schedule.sigma(1e-5) ** 2)
        / (schedule.alpha(T_STAR) ** 2 * STD**2 + schedule.sigma(T_STAR) ** 2)
    )
    errors = []
    for steps in (30, 60, 120):
        x = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
        y = DiffPure(score, T_STAR, steps, eta=0.0, method="srk")(x, noise_keys(0, torch.arange(1), 0))
        errors.append(abs(torch.autograd.grad(y.sum(), x)[0].mean().item() / closed - 1))
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("method", ["euler", "srk"])
def test_stochastic_variance_approaches_the_posterior(gaussian_score, method):
    """With many steps, purifying data gives data: variance s^2 for x ~ N(mean, s^2)."""
    score = gaussian_score(MEAN, STD)
    images = 3000
    generator = torch.Generator().manual_seed(0)
    data = MEAN + STD * torch.randn(images, 1, 4, 4, dtype=torch.float64, generator=generator)
    y = 2 * DiffPure(score, T_STAR, 240, method=method)((data + 1) / 2, noise_keys(0, torch.arange(images), 0)) - 1
    assert y.mean().item() == pytest.approx(MEAN, abs=5 * STD / math.sqrt(y.numel()))
    assert y.var().item() == pytest.approx(STD**2, rel=0.03)


def test_adjoint_converges_to_the_exact_gradient(gaussian_score):
    """For a smooth score the adjoint's error falls at first order in the step."""
    errors = []
    for steps in (100, 200, 400):
        x = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
        score, keys = gaussian_score(MEAN, STD), noise_keys(0, torch.arange(1), 0)
        exact, adjoint = (
            torch.autograd.grad(DiffPure(score, T_STAR, steps, mode)(x, keys).sum(), x)[0]
            for mode in ("exact", "adjoint")
        )
        errors.append(((adjoint - exact).norm() / exact.norm()).item())
    assert errors[-1] < 0.05
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.15)


def test_adjoint_on_a_quadratic_grid_converges_too(gaussian_score):
    """The adjoint walks the grid downwards: a piece's step must belong to the same piece in both directions."""
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    score, keys = gaussian_score(MEAN, STD), noise_keys(0, torch.arange(1), 0)
    errors = []
    for steps in (200, 400):
        exact, adjoint = (
            torch.autograd.grad(DiffPure(score, T_STAR, steps, m, grid="quadratic")(x, keys).sum(), x)[0]
            for m in ("exact", "adjoint")
        )
        errors.append(((adjoint - exact).norm() / exact.norm()).item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.15)
