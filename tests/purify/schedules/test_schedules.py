import math

import pytest
import torch
from processes import CHAINS, NAMED, PROCESSES, STRAIGHT, same

from purify import DiffPure, ScoreModel, noise_keys
from purify.networks.gaussian import GaussianNoise
from purify.schedules import EDM, VE, DiscreteVP, Functions, LinearVP, SubVP, describe, from_description


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
    torch.testing.assert_close(
        LinearVP().alpha(t) ** 2 + LinearVP().sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("schedule", PROCESSES, ids=str)
def test_marginals_solve_the_forward_sde(schedule):
    """alpha' = f alpha and d(sigma^2)/dt = 2 f sigma^2 + g^2, by automatic differentiation."""
    t = (schedule.t_max * torch.linspace(0.01, 1, 50, dtype=torch.float64)).requires_grad_()
    (alpha_rate,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    (variance_rate,) = torch.autograd.grad(schedule.sigma(t).square().sum(), t)
    torch.testing.assert_close(alpha_rate, schedule.drift(t) * schedule.alpha(t), rtol=1e-10, atol=0)
    expected = 2 * schedule.drift(t) * schedule.sigma(t) ** 2 + schedule.diffusion(t) ** 2
    # `expected` is the small difference of two numbers as large as g^2
    rounding = 1e-15 * float(schedule.diffusion(t.detach()).square().max())
    torch.testing.assert_close(variance_rate, expected, rtol=1e-10, atol=rounding)


@pytest.mark.parametrize("schedule", PROCESSES, ids=str)
def test_time_of_a_noise_level(schedule):
    """Floats and tensors of any shape alike."""
    times = [share * schedule.t_max for share in (0.01, 0.1, 0.7, 1.0)]
    ratios = [schedule.sigma(t) / schedule.alpha(t) for t in times]
    for t, ratio in zip(times, ratios, strict=True):
        found = schedule.time_of(ratio)
        assert isinstance(found, float) and found == pytest.approx(t, rel=1e-9)
    found = schedule.time_of(torch.tensor(ratios, dtype=torch.float64).reshape(2, 2).T)
    assert found.dtype == torch.float64
    assert found.T.flatten().tolist() == pytest.approx(times, rel=1e-9)
    single = schedule.time_of(torch.tensor(ratios[:2]))
    assert single.dtype == torch.float32
    assert single.tolist() == pytest.approx(times[:2], rel=1e-3)


def test_published_formulas_of_the_other_processes():
    """score_sde's subVPSDE and VESDE written out, and EDM's identity."""
    t = torch.linspace(1e-3, 1, 101, dtype=torch.float64)
    log_mean = -0.25 * t**2 * 19.9 - 0.5 * t * 0.1
    torch.testing.assert_close(SubVP().sigma(t), 1 - (2 * log_mean).exp(), rtol=1e-9, atol=0)
    discount = 1 - torch.exp(-2 * 0.1 * t - 19.9 * t**2)
    torch.testing.assert_close(SubVP().diffusion(t), ((0.1 + t * 19.9) * discount).sqrt(), rtol=1e-9, atol=0)
    sigma = 0.01 * (50 / 0.01) ** t
    torch.testing.assert_close(VE().sigma(t), sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        VE().diffusion(t), sigma * math.sqrt(2 * (math.log(50) - math.log(0.01))), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(EDM().sigma(80 * t), 80 * t)


@pytest.mark.parametrize("schedule", [SubVP(), VE(), EDM(), DiscreteVP.cosine(), STRAIGHT], ids=str)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_purification_by_every_process(schedule, eta):
    """Gaussian data: the Jacobian approaches alpha s sqrt(v_end / v) for the flow and alpha s^2 alpha_end / v for the
    reverse SDE, at first order.
    """
    std, t_star = 0.5, schedule.time_of(0.4)
    t_end = 1e-4 * t_star if not isinstance(schedule, VE) else 1e-5

    def v(t):
        return schedule.alpha(t) ** 2 * std**2 + schedule.sigma(t) ** 2

    ratio = schedule.alpha(t_star) / schedule.alpha(t_end)
    closed = {
        0.0: schedule.alpha(t_star) * math.sqrt(v(t_end) / v(t_star)),
        1.0: schedule.alpha(t_star) * ratio * v(t_end) / v(t_star),
    }[eta]
    score = ScoreModel(GaussianNoise(schedule, 0.2, std), schedule)
    errors = []
    for steps in (100, 200, 400):
        x = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
        y = DiffPure(score, t_star, steps, "backprop", eta=eta, t_end=t_end)(x, noise_keys(0, torch.arange(1), 0))
        errors.append(torch.autograd.grad(y.sum(), x)[0].mean().item() / closed - 1)
    assert abs(errors[-1]) < 0.02
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("schedule", CHAINS, ids=str)
def test_a_chain_is_met_at_every_step(schedule):
    """alpha and sigma at t = k / N are those of k steps x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) noise, and
    beta(t) there belongs to step k.
    """
    length, alpha, variance = len(schedule.betas), 1.0, 0.0
    for k, beta in enumerate(schedule.betas, 1):
        alpha, variance = alpha * math.sqrt(1 - beta), (1 - beta) * variance + beta
        t = k / length
        assert schedule.alpha(t) == pytest.approx(alpha, rel=1e-9)
        assert schedule.sigma(t) == pytest.approx(math.sqrt(variance), rel=1e-9)
        assert schedule.beta(t) == pytest.approx(-length * math.log1p(-beta), rel=1e-9)
    assert schedule.alpha(0.0) == 1 and schedule.sigma(0.0) == 0


def test_chains_by_name():
    """DDPM's betas, guided-diffusion's scaling to other lengths, latent diffusion's square roots, and the cosine of
    Nichol & Dhariwal.
    """
    assert DiscreteVP.linear().betas == pytest.approx(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist())
    assert DiscreteVP.linear(250).betas == pytest.approx(torch.linspace(4e-4, 0.08, 250, dtype=torch.float64).tolist())
    assert DiscreteVP.scaled_linear(1000).betas[-1] == pytest.approx(0.012)
    assert DiscreteVP.scaled_linear(3).betas[1] == pytest.approx(((0.00085**0.5 + 0.012**0.5) / 2) ** 2)
    cosine = DiscreteVP.cosine()
    for t in (0.1, 0.5, 0.9):
        expected = math.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
        assert cosine.alpha(t) == pytest.approx(expected, rel=1e-9)
    assert cosine.betas[-1] == 0.999
    for t in (0.05, 0.1, 0.3):  # DDPM's chain and its continuous limit differ by terms in 1 / N
        assert DiscreteVP.linear().alpha(t) == pytest.approx(LinearVP().alpha(t), rel=1e-3)


@pytest.mark.parametrize("schedule", PROCESSES, ids=str)
def test_floats_and_tensors_agree(schedule):
    for name in ("alpha", "sigma", "drift", "diffusion"):
        method = getattr(schedule, name)
        assert isinstance(method(0.3), float)
        assert math.isclose(method(0.3), method(torch.tensor(0.3, dtype=torch.float64)).item(), rel_tol=1e-12)


@pytest.mark.parametrize("schedule", NAMED, ids=str)
def test_description_round_trip(schedule):
    assert from_description(describe(schedule)) == schedule


def test_code_is_not_described():
    with pytest.raises(
        ValueError,
        match="a schedule of type Functions cannot be stored in a file, as it is made of code; DiscreteVP, EDM",
    ):
        describe(STRAIGHT)


def test_bad_settings():
    with pytest.raises(ValueError, match="unknown schedule 'Cosine'; known: DiscreteVP, EDM, LinearVP, SubVP, VE"):
        from_description({"name": "Cosine"})
    for make, message in (
        (lambda: LinearVP(3.0, 2.0), "LinearVP needs 0 < beta_min <= beta_max, got beta_min=3.0, beta_max=2.0"),
        (lambda: SubVP(0.0, 2.0), "SubVP needs 0 < beta_min"),
        (lambda: VE(2.0, 1.0), "VE needs 0 < sigma_min < sigma_max, got sigma_min=2.0, sigma_max=1.0"),
        (lambda: DiscreteVP(()), "DiscreteVP needs betas in"),
        (lambda: DiscreteVP((0.1, 1.0)), r"DiscreteVP needs betas in \(0, 1\), got 2 from 0.1 to 1.0"),
        (lambda: EDM(0.0), "EDM needs sigma_max > 0, got 0.0"),
        (lambda: Functions(same, same), r"Functions needs s above 0 on \[0.0, 1.0\], got 0.0"),
        (lambda: Functions(torch.exp, torch.cos), "Functions needs sigma_rel increasing from at least 0"),
        (lambda: Functions(torch.exp, lambda t: t - 0.1), "Functions needs sigma_rel increasing from at least 0"),
        (
            lambda: Functions(torch.exp, lambda t: t.float()),
            "needs sigma_rel to map float64 times .* got torch.float32 of shape",
        ),
        (lambda: Functions(lambda t: 1.0, same), "needs s to map float64 times .* got float"),
        (
            lambda: Functions(torch.exp, same, t_max=0.1, t_min=0.2),
            "Functions needs 0 <= t_min < t_max, got t_min=0.2, t_max=0.1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
