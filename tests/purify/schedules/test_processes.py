"""Identities between the processes, in float64."""

import itertools
import math

import pytest
import torch
from processes import BY_FUNCTIONS, CHAINS, PROCESSES, STRAIGHT

from purify import DiffPure, ScoreModel, noise_keys
from purify.networks.gaussian import GaussianNoise
from purify.schedules import (
    EDM,
    VE,
    DiscreteVP,
    Functions,
    LinearVP,
    index_of_time,
    log_snr,
    noise_to_signal,
    prior,
    snr,
    time_of_index,
    transition,
)

every_process = pytest.mark.parametrize("schedule", PROCESSES, ids=str)


def grid(schedule, count=41):
    """Times over the whole process, float64, that do not lie at the steps of the chains."""
    return schedule.t_max * torch.linspace(0.0105, 0.9995, count, dtype=torch.float64)


@every_process
def test_drift_and_diffusion_are_numerical_derivatives(schedule):
    """f = (log alpha)' and g^2 = alpha^2 (sigma_rel^2)', by central differences inside one step of every chain."""
    t, h = schedule.t_max * torch.tensor([0.0203, 0.1005, 0.3705, 0.9005], dtype=torch.float64), 1e-5 * schedule.t_max

    def rate(function):
        return (function(t + h) - function(t - h)) / (2 * h)

    torch.testing.assert_close(schedule.drift(t), rate(lambda t: schedule.alpha(t).log()), rtol=1e-6, atol=1e-8)
    squared = schedule.alpha(t) ** 2 * rate(lambda t: noise_to_signal(schedule, t) ** 2)
    torch.testing.assert_close(schedule.diffusion(t) ** 2, squared, rtol=1e-6, atol=0)


@every_process
def test_change_of_variables_to_edm(schedule):
    """y = x / alpha in the variable r = sigma / alpha is EDM's process: no drift, g^2 = 2 r; and so are its
    transitions.
    """
    t, edm = grid(schedule).requires_grad_(), EDM(1e9)
    ratio, log_alpha = noise_to_signal(schedule, t), schedule.alpha(t).log()
    (rate,), (alpha_rate,) = (torch.autograd.grad(values.sum(), t, retain_graph=True) for values in (ratio, log_alpha))
    drift, variance = (schedule.drift(t) - alpha_rate) / rate, (schedule.diffusion(t) / schedule.alpha(t)) ** 2 / rate
    torch.testing.assert_close(drift, edm.drift(ratio), rtol=0, atol=1e-10)
    torch.testing.assert_close(variance, edm.diffusion(ratio) ** 2, rtol=1e-9, atol=0)

    t = t.detach()
    factor, std = transition(schedule, t[:-1], t[1:])
    scale = schedule.alpha(t)
    edm_factor, edm_std = transition(edm, *(noise_to_signal(schedule, times) for times in (t[:-1], t[1:])))
    torch.testing.assert_close(factor * scale[:-1] / scale[1:], edm_factor, rtol=1e-14, atol=0)
    torch.testing.assert_close(std / scale[1:], edm_std, rtol=1e-12, atol=0)


@every_process
def test_the_discrete_recursion_has_the_marginals(schedule):
    """x_t = (s_t / s_{t-1}) x_{t-1} + s_t sqrt(sigma_t^2 - sigma_{t-1}^2) n from the first time on, with EDM's s and
    sigma; `transition` is that.
    """
    times = grid(schedule).tolist()
    s, ratio = [schedule.alpha(t) for t in times], [noise_to_signal(schedule, t) for t in times]
    factor, variance = s[0], schedule.sigma(times[0]) ** 2
    for k in range(1, len(times)):
        step, noise = s[k] / s[k - 1], s[k] * math.sqrt(ratio[k] ** 2 - ratio[k - 1] ** 2)
        assert transition(schedule, times[k - 1], times[k]) == pytest.approx((step, noise), rel=1e-9)
        factor, variance = step * factor, step**2 * variance + noise**2
        assert (factor, math.sqrt(variance)) == pytest.approx(
            (schedule.alpha(times[k]), schedule.sigma(times[k])), rel=1e-9
        )


@pytest.mark.parametrize("schedule", CHAINS, ids=str)
def test_transitions_of_a_chain_are_its_steps(schedule):
    """From index k - 1 to k: sqrt(1 - beta_k) and sqrt(beta_k)."""
    length = len(schedule.betas)
    for k in {1, length // 2, length - 1} - {0}:
        factor, std = transition(schedule, time_of_index(k - 1, length), time_of_index(k, length))
        assert factor == pytest.approx(math.sqrt(1 - schedule.betas[k]), rel=1e-12)
        assert std == pytest.approx(math.sqrt(schedule.betas[k]), rel=1e-9)


@every_process
def test_transitions_compose(schedule):
    """s -> t -> u is s -> u, t -> t changes nothing, and floats and tensors agree."""
    s, t, u = (share * schedule.t_max for share in (0.123, 0.456, 0.789))
    (first, std1), (second, std2) = transition(schedule, s, t), transition(schedule, t, u)
    assert (first * second, math.hypot(second * std1, std2)) == pytest.approx(transition(schedule, s, u), rel=1e-12)
    assert transition(schedule, t, t) == (1, 0)
    found = transition(schedule, torch.tensor([s, t], dtype=torch.float64), u)
    assert found[0].tolist() == pytest.approx([first * second, second], rel=1e-12)
    assert found[1].tolist() == pytest.approx([math.hypot(second * std1, std2), std2], rel=1e-12)


def test_transitions_do_not_run_back():
    for s, t in ((0.5, 0.4), (torch.tensor([0.1, 0.5]), 0.4), (0.3, torch.tensor([0.4, 0.2]))):
        with pytest.raises(ValueError, match="the forward process needs s <= t; exchange them"):
            transition(LinearVP(), s, t)


def test_vp_is_the_limit_of_ddpm_chains():
    """alpha and sigma of N steps with betas from 0.1 / N to 20 / N approach LinearVP's at first order in 1 / N."""
    shares = torch.arange(1, 21, dtype=torch.float64) / 20
    errors = []
    for length in (1000, 2000, 4000):
        chain = DiscreteVP.linear(length, 0.1 / 1000, 20 / 1000)
        by_product = (
            (1 - torch.tensor(chain.betas, dtype=torch.float64)).cumprod(0)[length // 20 - 1 :: length // 20].sqrt()
        )
        torch.testing.assert_close(chain.alpha(shares), by_product, rtol=1e-9, atol=0)
        differences = [
            (getattr(chain, name)(shares) / getattr(LinearVP(), name)(shares) - 1).abs() for name in ("alpha", "sigma")
        ]
        errors.append(torch.stack(differences).amax(1))
    for coarse, fine in itertools.pairwise(errors):
        assert torch.log2(coarse / fine).tolist() == pytest.approx([1, 1], abs=0.05)


def test_ve_is_ncsn():
    """NCSN's noise levels are a geometric ladder, and x_i = x_{i-1} + sqrt(sigma_i^2 - sigma_{i-1}^2) z climbs it (Song
    et al. 2021, eq. 20).
    """
    schedule, levels = VE(0.01, 50.0), 232
    t = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    sigma = schedule.sigma(t)
    torch.testing.assert_close(
        sigma, torch.logspace(math.log10(0.01), math.log10(50.0), levels, dtype=torch.float64), rtol=1e-12, atol=0
    )
    factor, std = transition(schedule, t[:-1], t[1:])
    assert torch.equal(factor, torch.ones_like(factor))
    torch.testing.assert_close(std, (sigma[1:] ** 2 - sigma[:-1] ** 2).sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close((sigma[0] ** 2 + std.square().cumsum(0)).sqrt(), sigma[1:], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("named", "given"), BY_FUNCTIONS, ids=str)
def test_functions_equal_the_named_processes(named, given):
    t = grid(named)
    for name in ("alpha", "sigma", "drift", "diffusion"):
        torch.testing.assert_close(getattr(given, name)(t), getattr(named, name)(t), rtol=1e-9, atol=1e-14)
    ratio = noise_to_signal(named, t)
    torch.testing.assert_close(given.time_of(ratio), named.time_of(ratio), rtol=1e-9, atol=0)


def test_functions_answer_where_nobody_else_does():
    """Noise that the process does not have, times without a gradient mode, and the type of the times."""
    schedule = Functions(torch.ones_like, lambda t: t + 1, t_max=2.0, t_min=0.5)
    assert schedule.time_of(1.2) == 0.5 and schedule.time_of(1.5) == 0.5 and schedule.time_of(3.1) == math.inf
    assert schedule.time_of(3.0) == pytest.approx(2.0) and schedule.time_of(2.0) == pytest.approx(1.0)
    with torch.no_grad():
        assert schedule.diffusion(1.0) == pytest.approx(2.0)
    with torch.inference_mode():
        assert schedule.diffusion(1.0) == pytest.approx(2.0)
    assert schedule.diffusion(torch.ones(3)).dtype == torch.float32


@pytest.mark.parametrize("gradient", ["exact", "backprop"])
def test_functions_purify_as_the_named_process(gradient):
    """With its gradient: the derivatives inside must work under torch.func, which replays the steps."""
    named, given = BY_FUNCTIONS[0]
    results = []
    for schedule in (named, given):
        x = torch.linspace(0, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4).requires_grad_()
        y = DiffPure(ScoreModel(GaussianNoise(schedule, 0.2, 0.5), schedule), 0.1, 5, gradient)(
            x, noise_keys(0, torch.arange(1), 0)
        )
        results.append((y, torch.autograd.grad(y.square().sum(), x)[0]))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@every_process
def test_signal_to_noise(schedule):
    t = grid(schedule)
    ratio = schedule.sigma(t) / schedule.alpha(t)
    assert torch.equal(noise_to_signal(schedule, t), ratio)
    torch.testing.assert_close(snr(schedule, t), (schedule.alpha(t) / schedule.sigma(t)) ** 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(log_snr(schedule, t), snr(schedule, t).log(), rtol=1e-9, atol=1e-12)
    assert (log_snr(schedule, t).diff() < 0).all()
    single = float(t[3])
    assert snr(schedule, single) == pytest.approx(float(snr(schedule, t)[3]), rel=1e-12)
    torch.testing.assert_close(schedule.time_of((-0.5 * log_snr(schedule, t)).exp()), t, rtol=1e-9, atol=0)


def test_no_noise_is_an_infinite_ratio():
    for schedule in (LinearVP(), EDM(), STRAIGHT):
        assert snr(schedule, 0.0) == math.inf and log_snr(schedule, 0.0) == math.inf
        assert snr(schedule, torch.zeros(2)).tolist() == [math.inf] * 2
    assert LinearVP().time_of(0.0) == 0.0


def test_priors():
    """DDPM's chain ends with alpha_bar = 4.036e-5; VP's alpha is exp(-(beta_min + beta_max) / 4)."""
    assert prior(LinearVP()) == pytest.approx((math.exp(-20.1 / 4), math.sqrt(1 - math.exp(-20.1 / 2))), rel=1e-12)
    assert prior(DiscreteVP.linear())[0] ** 2 == pytest.approx(4.0358e-5, rel=1e-4)
    assert prior(VE(0.01, 50.0)) == pytest.approx((1, 50))
    assert prior(EDM()) == (1, 80)
    assert prior(STRAIGHT) == pytest.approx((0.001, 0.999))


def test_indices_of_a_chain():
    """Index k is the marginal after k + 1 steps and the label k of DDPM's networks; times in between have the nearest
    index.
    """
    chain, length = DiscreteVP.linear(), 1000
    indices = torch.arange(length)
    times = time_of_index(indices, length)
    torch.testing.assert_close(
        chain.alpha(times) ** 2, (1 - torch.tensor(chain.betas, dtype=torch.float64)).cumprod(0), rtol=1e-9, atol=0
    )
    assert torch.equal(index_of_time(times, length), indices)
    assert [index_of_time(time_of_index(k, length), length) for k in (0, 14, 149, 999)] == [0, 14, 149, 999]
    assert torch.equal(index_of_time(times.float(), length), indices)
    network = torch.nn.Module()
    network.forward = lambda x, labels: labels[:, None, None, None]
    labels = ScoreModel(network, chain, time_scale=1000.0, time_offset=-1.0)(
        torch.zeros(1000, 1, 1, 1, dtype=torch.float64), times
    )
    torch.testing.assert_close(labels.flatten(), indices.double(), rtol=0, atol=1e-9)
    assert index_of_time(0.0, length) == index_of_time(1e-5, length) == 0 and index_of_time(0.1004, length) == 99
    for call, message in (
        (lambda: time_of_index(1000, 1000), "index must lie in 0, ..., 999 for a chain of 1000 steps, got 1000"),
        (lambda: time_of_index(torch.tensor([-1, 3]), 10), "index must lie in 0, ..., 9"),
        (lambda: index_of_time(1.1, 10), r"t must lie in \[0, 1\] to have an index in a chain of 10 steps, got 1.1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
