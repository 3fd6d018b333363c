"""Solvers given by a formula for one step, on Gaussian data, for every process.

Data N(MEAN, STD^2) has a linear score, so every path is affine in the first state and in its normals. Unit inputs and
unit normals find all factors of a path exactly: nothing is sampled. They are compared with an independent recursion on
such factors (tight), and with the closed form as the steps shrink (order).
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from purify import ScoreModel, noise_keys
from purify.networks.gaussian import GaussianNoise
from purify.schedules import EDM, VE, DiscreteVP, LinearVP, SubVP
from purify.solvers import DDIM, Ancestral, DPMSolver, Exponential, Heun, Levels, PredictorCorrector
from purify.solvers.grids import time_grid

MEAN, STD = 0.2, 0.5
FIRST, LAST = 1.0, 0.05  # levels sigma / alpha that the paths lead from and to
V = 0.3  # the learned variance's network output
TINY = 1e-13  # a signal-to-noise ratio that leaves only the predictor

PROCESSES = {"LinearVP": LinearVP(), "DiscreteVP": DiscreteVP.cosine(200), "SubVP": SubVP(), "VE": VE(), "EDM": EDM()}
every_process = pytest.mark.parametrize("process", PROCESSES)


class WithVariance(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t):
        return torch.cat([self.network(x, t), torch.full_like(x, V)], dim=1)


def oracle(process, learned=False):
    schedule = PROCESSES[process]
    network = GaussianNoise(schedule, MEAN, STD)
    return ScoreModel(WithVariance(network) if learned else network, schedule, "noise", learned_variance=learned)


def grid_of(schedule, steps, name="karras"):
    return time_grid(schedule.time_of(FIRST), schedule.time_of(LAST), steps, name, schedule)


@pytest.fixture
def factors(monkeypatch):
    """factors(solver): (offset, factor of the first state, factors of the normals in the order in which they are
    drawn).
    """
    drawn = []

    def unit_normals(keys, stage, step, shape, dtype):
        if (stage, step) not in drawn:
            drawn.append((stage, step))
        ones = (keys == 2 + drawn.index((stage, step))).to(dtype)
        return ones.reshape(-1, *[1] * len(shape)).expand(-1, *shape)

    def find(solver):
        drawn.clear()
        count = 2 + 2 * solver.steps
        x = torch.zeros(count, 1, 1, 1, dtype=torch.float64)
        x[1] = 1
        y = solver.solve(x, torch.arange(count)).flatten().numpy()
        assert len(drawn) <= count - 2
        return np.concatenate([y[:1], y[1 : 2 + len(drawn)] - y[0]])

    monkeypatch.setattr("purify.solvers.base.standard_normal", unit_normals)
    return find


class Recursion:
    """A path as its factors, each step as its paper has it. The state is x = alpha y; D is the exact denoiser."""

    def __init__(self, schedule, times):
        self.schedule, self.times, self.count = schedule, times, 0
        self.pairs = list(itertools.pairwise(times))
        self.unit = np.eye(2 + 2 * len(times))

    def marginal(self, t):
        return self.schedule.alpha(t), self.schedule.sigma(t)

    def denoised(self, x, t):
        alpha, sigma = self.marginal(t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return gain * x + (1 - gain * alpha) * MEAN * self.unit[0]

    def z(self):
        self.count += 1
        return self.unit[1 + self.count]

    def cut(self, x):
        assert not x[2 + self.count :].any()
        return x[: 2 + self.count]

    def posterior(self, x, t, s):
        """Mean and variance of x_s given x_t and x_0 = D, by Bayes' rule for y = x / alpha."""
        (a_t, s_t), (a_s, s_s) = self.marginal(t), self.marginal(s)
        near, far = (s_s / a_s) ** 2, (s_t / a_t) ** 2 - (s_s / a_s) ** 2
        variance = 1 / (1 / near + 1 / far)
        return a_s * variance * (self.denoised(x, t) / near + x / a_t / far), a_s**2 * variance

    def ddim(self, eta):
        x = self.unit[1]
        for t, s in self.pairs:
            (a_t, s_t), (a_s, s_s) = self.marginal(t), self.marginal(s)
            clean = self.denoised(x, t)
            variance = eta**2 * self.posterior(x, t, s)[1]
            x = a_s * clean + math.sqrt(s_s**2 - variance) * (x - a_t * clean) / s_t
            if eta:
                x = x + math.sqrt(variance) * self.z()
        return self.cut(x)

    def ancestral(self, kind):
        x = self.unit[1]
        for t, s in self.pairs:
            (a_t, s_t), (a_s, s_s) = self.marginal(t), self.marginal(s)
            x, small = self.posterior(x, t, s)
            large = s_t**2 - (a_t / a_s) ** 2 * s_s**2
            share = {"small": 0.0, "large": 1.0, "learned": (V + 1) / 2}[kind]
            if kind == "small" or s != self.times[-1]:
                x = x + math.exp((share * math.log(large) + (1 - share) * math.log(small)) / 2) * self.z()
        return self.cut(x)

    def reverse_diffusion(self):
        x = self.unit[1]
        for t, s in self.pairs:
            (a_t, s_t), (a_s, s_s) = self.marginal(t), self.marginal(s)
            step, variance = a_t / a_s, s_t**2 - (a_t / a_s) ** 2 * s_s**2
            score = (a_t * self.denoised(x, t) - x) / s_t**2
            x = 2 * x - step * x + variance * score
            if s != self.times[-1]:
                x = x + math.sqrt(variance) * self.z()
                self.z()  # the corrector's
        return self.cut(x)

    def heun(self, rule):
        """EDM's algorithm 2 on y = x / alpha, with the noise level as the time."""
        levels = [sigma / alpha for alpha, sigma in map(self.marginal, self.times)]
        y = self.unit[1] / self.marginal(self.times[0])[0]

        def slope(y, level):
            return (y - (STD**2 * y + level**2 * MEAN * self.unit[0]) / (STD**2 + level**2)) / level

        for here, there in itertools.pairwise(levels):
            gamma = min(rule.S_churn / (len(levels) - 1), math.sqrt(2) - 1) if rule.S_tmin <= here <= rule.S_tmax else 0
            raised = here + gamma * here
            if rule.S_churn:
                y = y + math.sqrt(raised**2 - here**2) * rule.S_noise * self.z()
            d = slope(y, raised)
            euler = y + (there - raised) * d
            y = euler if there == levels[-1] else y + (there - raised) * (d / 2 + slope(euler, there) / 2)
        return self.cut(y * self.marginal(self.times[-1])[0])

    def dpm(self, order, eta):
        x, before, h_before = self.unit[1], None, None
        for t, s in self.pairs:
            (a_t, s_t), (a_s, s_s) = self.marginal(t), self.marginal(s)
            h = math.log(a_s / s_s) - math.log(a_t / s_t)
            clean = self.denoised(x, t)
            used = clean
            if order == 2 and before is not None and s != self.times[-1]:
                r = h_before / h
                used = (1 + 1 / (2 * r)) * clean - before / (2 * r)
            x = s_s / s_t * math.exp(-(eta**2) * h) * x - a_s * math.expm1(-(1 + eta**2) * h) * used
            if eta:
                x = x + s_s * math.sqrt(-math.expm1(-2 * eta**2 * h)) * self.z()
            before, h_before = clean, h
        return self.cut(x)

    def exponential(self, weights, eta):
        """One formula for the whole step, on y = x / alpha."""
        x, tau = self.unit[1], 1 + eta**2
        for t, s in self.pairs:
            (a_t, s_t), (a_s, s_s) = self.marginal(t), self.marginal(s)
            y, h, level = x / a_t, math.log(s_t / a_t * a_s / s_s), s_s / a_s
            first = self.denoised(x, t)
            if s == self.times[-1]:
                y = math.exp(-tau * h) * y - math.expm1(-tau * h) * first
                if eta:
                    y = y + level * math.sqrt(-math.expm1(-2 * eta**2 * h)) * self.z()
            else:
                middle = level * math.exp(h / 2)
                u, noise = math.exp(-tau * h / 2) * y - math.expm1(-tau * h / 2) * first, 0
                if eta:
                    half = -math.expm1(-(eta**2) * h)
                    noise = middle * math.sqrt(half) * self.z()
                    u, noise = u + noise, math.exp(-tau * h / 2) * noise + level * math.sqrt(half) * self.z()
                t_middle = self.schedule.time_of(middle)
                second = self.denoised(self.schedule.alpha(t_middle) * u, t_middle)
                phi1 = -math.expm1(-tau * h) / (tau * h)
                b2 = 2 * (1 - phi1) / (tau * h) if weights == "res" else phi1
                y = math.exp(-tau * h) * y + tau * h * ((phi1 - b2) * first + b2 * second) + noise
            x = a_s * y
        return self.cut(x)


CHURN = Heun(S_churn=2.0, S_tmin=0.1, S_tmax=0.8, S_noise=1.01)

RECURSIONS = {
    **{f"ddim eta={eta}": (DDIM(eta), lambda r, eta=eta: r.ddim(eta)) for eta in (0.0, 0.6, 1.0)},
    **{
        f"ancestral {kind}": (Ancestral(kind), lambda r, kind=kind: r.ancestral(kind))
        for kind in ("small", "large", "learned")
    },
    **{f"heun S_churn={rule.S_churn}": (rule, lambda r, rule=rule: r.heun(rule)) for rule in (Heun(), CHURN)},
    **{
        f"dpm++ {o} eta={eta}": (DPMSolver(o, eta), lambda r, o=o, eta=eta: r.dpm(o, eta))
        for o in (1, 2)
        for eta in (0.0, 0.6, 1.0)
    },
    **{
        f"exponential {w} eta={eta}": (Exponential(w, eta), lambda r, w=w, eta=eta: r.exponential(w, eta))
        for w in ("dpm++", "res")
        for eta in (0.0, 1.0)
    },
    "reverse diffusion": (PredictorCorrector(snr=TINY), lambda r: r.reverse_diffusion()),
}


@every_process
@pytest.mark.parametrize("name", RECURSIONS)
def test_the_path_is_the_published_recursion(factors, process, name):
    """Offset, factor and the factor of every normal: so mean and covariance too."""
    rule, recursion = RECURSIONS[name]
    score = oracle(process, learned=name == "ancestral learned")
    for grid in ("karras", "uniform"):
        times = grid_of(score.schedule, 7, grid)
        np.testing.assert_allclose(
            factors(rule.build(score, times)), recursion(Recursion(score.schedule, times)), rtol=1e-9, atol=1e-11
        )


def closed_form(schedule, eta):
    """(factor, offset, variance) of the continuous way back; deviations from the marginal shrink like sqrt(v)^(1 +
    eta^2), v = STD^2 + r^2 for x / alpha.
    """
    first, last = STD**2 + FIRST**2, STD**2 + LAST**2
    shrink = (last / first) ** ((1 + eta**2) / 2)
    alphas = schedule.alpha(schedule.time_of(FIRST)), schedule.alpha(schedule.time_of(LAST))
    return alphas[1] / alphas[0] * shrink, alphas[1] * (1 - shrink) * MEAN, alphas[1] ** 2 * (last - shrink**2 * first)


def moments(found):
    return found[1], found[0], (found[2:] ** 2).sum()


ORDERS = [
    *((rule, 0.0, 1) for rule in (DDIM(), DPMSolver(1))),
    *((rule, 0.0, 2) for rule in (Heun(), DPMSolver(), Exponential(), Exponential("res"))),
    *(
        (rule, 1.0, 1)
        for rule in (
            DDIM(1.0),
            Ancestral(),
            Ancestral("large"),
            Ancestral("learned"),
            DPMSolver(1, 1.0),
            PredictorCorrector(snr=TINY),
        )
    ),
    (DDIM(0.5), 0.5, 1),
    *((kind(eta=eta), eta, 2) for kind in (DPMSolver, Exponential) for eta in (0.5, 1.0)),
    (Exponential("res", 1.0), 1.0, 2),
]


@every_process
@pytest.mark.parametrize(("rule", "eta", "order"), ORDERS, ids=str)
def test_order(factors, process, rule, eta, order):
    """Of the Jacobian and of the mean, and where there is noise of the variance (all there is to know of a Gaussian:
    the weak order).
    """
    score = oracle(process, learned=rule == Ancestral("learned"))
    expected = closed_form(score.schedule, eta)
    errors = []
    for steps in (40, 80, 160):
        found = moments(factors(rule.build(score, grid_of(score.schedule, steps))))
        errors.append([a - b for a, b in zip(found, expected, strict=True)][: 3 if eta else 2])
    inexact = np.abs(errors).max(axis=0) > 1e-12  # the mean of an ancestral step is exact for such data
    assert inexact.any()
    for coarse, fine in itertools.pairwise(np.array(errors)[:, inexact]):
        np.testing.assert_allclose(np.log2(coarse / fine), order, atol=0.2)
    assert np.abs(errors[-1]).max() < {1: 0.02, 2: 4e-4}[order]


@every_process
def test_churn_keeps_the_marginal_to_second_order(factors, process):
    """Data noised to the first level end at the data's own marginal of the last level, whatever the churn."""
    score = oracle(process)
    errors = []
    for steps in (40, 80, 160):
        times = grid_of(score.schedule, steps)
        (a_t, s_t), (a_s, s_s) = ((score.schedule.alpha(t), score.schedule.sigma(t)) for t in (times[0], times[-1]))
        factor, offset, variance = moments(factors(Heun(S_churn=4.0, S_tmax=0.9).build(score, times)))
        errors.append(
            [
                factor * a_t * MEAN + offset - a_s * MEAN,
                factor**2 * (a_t**2 * STD**2 + s_t**2) + variance - (a_s**2 * STD**2 + s_s**2),
            ]
        )
    assert factor < 0.7 * closed_form(score.schedule, 0.0)[0]  # the churn did something
    assert np.abs(errors).max(axis=0)[0] < 1e-12  # the data's mean is kept exactly
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse[1] / fine[1]) == pytest.approx(2, abs=0.1)


@every_process
def test_a_correction_is_langevin_with_the_ratio_rule(process):
    """In large images |score|^2 = d / v for the marginal's variance v, so h = 2 snr^2 v, and a step of Langevin
    dynamics leaves v (1 + (h / v)^2).
    """
    score = oracle(process)
    schedule, snr, images = score.schedule, 0.5, 100
    t = schedule.time_of(FIRST)
    # a step down that changes nothing
    levels = Levels(score, (t, schedule.time_of(FIRST * (1 - 1e-6)), schedule.time_of(LAST)))
    variance = schedule.alpha(t) ** 2 * STD**2 + schedule.sigma(t) ** 2
    normals = torch.randn(images, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = schedule.alpha(t) * MEAN + variance**0.5 * normals
    y = PredictorCorrector(1, snr, "ancestral").step(levels, 0, x, noise_keys(0, torch.arange(images), 0))
    assert y.mean().item() == pytest.approx(schedule.alpha(t) * MEAN, abs=5 * (1.25 * variance / y.numel()) ** 0.5)
    assert y.var().item() == pytest.approx(variance * (1 + 4 * snr**4), rel=5 * math.sqrt(2 / y.numel()) + 0.002)
    kept = torch.linalg.vecdot(x.flatten() - x.mean(), y.flatten()) / (x.numel() * x.var())
    assert kept.item() == pytest.approx(1 - 2 * snr**2, abs=5 * math.sqrt(4 * snr**2 / y.numel()))
