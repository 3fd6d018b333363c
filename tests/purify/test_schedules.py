import math

import pytest
import torch

from purify.schedules import LinearVP, describe, from_description


def test_linear_vp_equals_score_sde_formulas():
    """score_sde's VPSDE: marginal_prob's log_mean_coeff and std, sde()'s drift and diffusion, written out."""
    schedule, t = LinearVP(0.1, 20.0), torch.linspace(1e-5, 1, 101, dtype=torch.float64)
    log_mean = -0.25 * t**2 * (20.0 - 0.1) - 0.5 * t * 0.1
    torch.testing.assert_close(schedule.alpha(t), log_mean.exp(), rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.sigma(t), (1 - (2 * log_mean).exp()).sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(schedule.drift(t), -0.5 * (0.1 + t * 19.9), rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.diffusion(t), (0.1 + t * 19.9).sqrt(), rtol=1e-12, atol=0)


def test_variance_is_preserved():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(LinearVP().alpha(t) ** 2 + LinearVP().sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-14)


def test_marginals_solve_the_forward_sde():
    """alpha' = f alpha and d(sigma^2)/dt = 2 f sigma^2 + g^2, by automatic differentiation."""
    schedule = LinearVP()
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64, requires_grad=True)
    (alpha_rate,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    (variance_rate,) = torch.autograd.grad(schedule.sigma(t).square().sum(), t)
    torch.testing.assert_close(alpha_rate, schedule.drift(t) * schedule.alpha(t), rtol=1e-10, atol=0)
    expected = 2 * schedule.drift(t) * schedule.sigma(t) ** 2 + schedule.diffusion(t) ** 2
    torch.testing.assert_close(variance_rate, expected, rtol=1e-10, atol=0)


def test_discrete_betas_converge_to_the_continuous_marginal():
    """DDPM's product of 1 - beta_i with score_sde's betas approaches alpha^2 at first order in 1/N."""
    errors = []
    for n in (1000, 2000):
        betas = torch.linspace(0.1 / n, 20 / n, n, dtype=torch.float64)
        errors.append(abs((1 - betas).cumprod(0)[n // 10 - 1].item() / LinearVP().alpha(0.1) ** 2 - 1))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


def test_floats_and_tensors_agree():
    schedule = LinearVP()
    for name in ("alpha", "sigma", "drift", "diffusion"):
        method = getattr(schedule, name)
        assert isinstance(method(0.3), float)
        assert math.isclose(method(0.3), method(torch.tensor(0.3, dtype=torch.float64)).item(), rel_tol=1e-12)


def test_description_round_trip_and_errors():
    assert from_description(describe(LinearVP(0.2, 15.0))) == LinearVP(0.2, 15.0)
    with pytest.raises(ValueError, match="unknown schedule 'Cosine'; known: LinearVP"):
        from_description({"name": "Cosine"})
    with pytest.raises(ValueError, match="beta_min=3.0, beta_max=2.0"):
        LinearVP(3.0, 2.0)
