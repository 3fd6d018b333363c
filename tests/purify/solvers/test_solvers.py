"""Solvers given by a formula for one step, on a nonlinear network: identities between them, gradients, randomness,
costs, refusals.
"""

import itertools
import math
import textwrap
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from purify import DiffPure, ScoreModel, noise_keys
from purify.gradients import MODES
from purify.networks.gaussian import GaussianNoise
from purify.noise import Stage, standard_normal
from purify.schedules import VE, DiscreteVP, LinearVP
from purify.solvers import DDIM, SOLVERS, Ancestral, DPMSolver, Exponential, Heun, PredictorCorrector, base, make
from purify.solvers.grids import time_grid

KEYS = noise_keys(0, torch.arange(3), 0)
X = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))

RULES = [
    DDIM(),
    DDIM(0.7),
    Ancestral(),
    Ancestral("large"),
    Ancestral("learned"),
    Heun(),
    Heun(S_churn=1.0, S_tmin=0.1, S_tmax=0.3, S_noise=1.007),
    DPMSolver(),
    DPMSolver(eta=1.0),
    Exponential(),
    Exponential("res", 1.0),
    PredictorCorrector(),
    PredictorCorrector(2, 0.1, "ancestral"),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)


class WithVariance(nn.Module):
    """Its second output is guided-diffusion's interpolation, made up from the image."""

    size_multiple = 4

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, labels):
        output = self.network(x, labels)
        return torch.cat([output, torch.sin(3 * output)], dim=1)


@pytest.fixture
def score(unet_score):
    """Serves every rule."""
    return ScoreModel(
        WithVariance(unet_score.network), unet_score.schedule, "v", image_shape=(1, 28, 28), learned_variance=True
    ).eval()


def steps_of(rule, pieces=3):
    return pieces * rule.evaluations - rule.spared


def value_and_gradient(purifier, x, keys=KEYS):
    x = x.clone().requires_grad_()
    y = purifier(x, keys)
    (gradient,) = torch.autograd.grad((y * WEIGHT[: len(x)].to(x.dtype)).sum(), x)
    return y.detach(), gradient


def normals(stage, index, dtype=torch.float64):
    return standard_normal(KEYS, stage, index, (1, 28, 28), dtype)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_equals_backprop_bitwise(score, rule, dtype):
    score, x, steps = score.to(dtype), X[:2].to(dtype), steps_of(rule)
    y, exact = value_and_gradient(DiffPure(score, 0.1, steps, "exact", rule, grid="quadratic"), x, KEYS[:2])
    y_reference, backprop = value_and_gradient(
        DiffPure(score, 0.1, steps, "backprop", rule, grid="quadratic"), x, KEYS[:2]
    )
    assert torch.equal(y, y_reference)
    assert torch.equal(exact, backprop)


@every_rule
def test_exact_gradient_matches_finite_differences(score, rule):
    """Memory, churn, learned variances and the corrector's step size, which depends on the image, included."""
    purifier, x = DiffPure(score.double(), 0.1, steps_of(rule), solver=rule), X.double()
    _, gradient = value_and_gradient(purifier, x)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    h = 1e-5
    with torch.no_grad():
        difference = ((purifier(x + h * direction, KEYS) - purifier(x - h * direction, KEYS)) * WEIGHT).sum() / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=0)


@every_rule
def test_steps_counts_network_evaluations(score, rule):
    seen = []
    score.network.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        for pieces in (1, 3):
            seen.clear()
            DiffPure(score, 0.1, steps_of(rule, pieces), solver=rule)(X, KEYS)
            assert len(seen) == steps_of(rule, pieces)


@every_rule
def test_the_network_is_not_asked_at_the_end(score, rule):
    """So that the grid may end at the data."""
    y, gradient = value_and_gradient(DiffPure(score, 0.1, steps_of(rule, 4), solver=rule, t_end=0.0), X)
    assert y.isfinite().all()
    assert gradient.isfinite().all()


@every_rule
def test_a_time_for_each_image_equals_one_image_at_a_time(score, rule):
    times = torch.tensor([0.05, 0.1, 0.17], dtype=torch.float64)
    steps = steps_of(rule)
    together = value_and_gradient(DiffPure(score, times, steps, solver=rule, grid="karras"), X)
    for i, t in enumerate(times.tolist()):
        x = X[i : i + 1].clone().requires_grad_()
        y = DiffPure(score, t, steps, solver=rule, grid="karras")(x, KEYS[i : i + 1])
        (gradient,) = torch.autograd.grad((y * WEIGHT[i]).sum(), x)
        torch.testing.assert_close(together[0][i : i + 1], y.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together[1][i : i + 1], gradient, rtol=1e-4, atol=1e-5)


@every_rule
def test_an_image_does_not_see_its_batch(score, rule):
    purifier = DiffPure(score, 0.1, steps_of(rule), solver=rule)
    with torch.no_grad():
        torch.testing.assert_close(purifier(X, KEYS)[1:2], purifier(X[1:2], KEYS[1:2]), rtol=0, atol=1e-5)
        shuffled = torch.tensor([2, 0, 1])
        torch.testing.assert_close(
            purifier(X, KEYS)[shuffled], purifier(X[shuffled], KEYS[shuffled]), rtol=0, atol=1e-5
        )


@every_rule
def test_deterministic_rules_draw_nothing(score, rule, monkeypatch):
    drawn = []

    def watch(keys, stage, *rest):
        drawn.append(stage)
        return standard_normal(keys, stage, *rest)

    monkeypatch.setattr("purify.solvers.base.standard_normal", watch)
    with torch.no_grad():
        DiffPure(score, 0.1, steps_of(rule), solver=rule)(X, KEYS)
    assert bool(drawn) == (rule not in (DDIM(), Heun(), DPMSolver(), Exponential()))


def test_trajectory_of_a_solver_with_memory_shows_images(unet_score):
    purifier = DiffPure(unet_score, 0.1, 6, solver=DPMSolver())
    x = X.clone().requires_grad_()
    path = purifier.trajectory(x, KEYS, points=4)
    assert path.states.shape == (4, 3, 1, 28, 28)
    assert torch.equal(path.result, path.states[-1])
    assert torch.equal(path.result, purifier(X, KEYS))
    (gradient,) = torch.autograd.grad((path.result * WEIGHT).sum(), x)
    assert torch.equal(gradient, value_and_gradient(purifier, X)[1])


def test_all_modes_give_the_same_values(unet_score):
    modes = [mode for mode in MODES if mode != "adjoint"]
    values = [value_and_gradient(DiffPure(unet_score, 0.1, 5, mode, DPMSolver(eta=1.0)), X)[0] for mode in modes]
    for other in values[1:]:
        assert torch.equal(values[0], other)


@pytest.mark.parametrize("t_end", [0.0, 1e-3])
def test_identities(unet_score, t_end):
    """DDIM at eta = 1 is DDPM's ancestral step and SDE-DPM-Solver++(1); without noise DPM-Solver++(1) is DDIM."""
    score = unet_score.double()

    def path(rule):
        return DiffPure(score, 0.2, 6, solver=rule, t_end=t_end)(X.double(), KEYS)

    with torch.no_grad():
        torch.testing.assert_close(path(DDIM(1.0)), path(Ancestral("small")), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(path(DDIM(1.0)), path(DPMSolver(1, 1.0)), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(path(DDIM()), path(DPMSolver(1)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ancestral_on_all_steps_is_ddpm(score, variance):
    """Ho et al., eqs. 6 and 7 in betas; learned: Nichol & Dhariwal, eq. 15. Counted as in the papers, t from 1."""
    schedule = DiscreteVP.linear(50)
    score = ScoreModel(score.network, schedule, "noise", learned_variance=True).double()
    betas = torch.tensor((0.0, *schedule.betas), dtype=torch.float64)
    bars = (1 - betas).cumprod(0)
    times = [k / 50 for k in range(6, -1, -1)]
    x = expected = X.double()
    with torch.no_grad():
        for index, t in enumerate(range(6, 0, -1)):
            x = Ancestral(variance).build(score, times).step(index, x, KEYS)
            noise, v = score.noise_and_variance(expected, t / 50)
            clean = (expected - (1 - bars[t]).sqrt() * noise) / bars[t].sqrt()
            mean = (
                bars[t - 1].sqrt() * betas[t] / (1 - bars[t]) * clean
                + (1 - betas[t]).sqrt() * (1 - bars[t - 1]) / (1 - bars[t]) * expected
            )
            if t > 1:
                small = betas[t] * (1 - bars[t - 1]) / (1 - bars[t])
                share = {"small": torch.zeros_like(v), "large": torch.ones_like(v), "learned": (v + 1) / 2}[variance]
                mean = mean + (0.5 * (share * betas[t].log() + (1 - share) * small.log())).exp() * normals(
                    Stage.INCREMENT, index
                )
            expected = mean
            torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)


def test_a_coarse_grid_is_a_subsequence_of_the_chain(score):
    """The betas of a sub-sequence are 1 - abar_t / abar_s (Nichol & Dhariwal, section 4): the shorter chain, walked
    whole, gives the same.
    """
    fine = DiscreteVP.linear(60)
    bars = [fine.alpha(k / 60) ** 2 for k in (0, 10, 20, 30)]
    short = DiscreteVP(tuple(1 - b / a for a, b in itertools.pairwise(bars)))
    network = score.network.double()
    long_chain = ScoreModel(network, fine, "noise", time_scale=60.0)
    short_chain = ScoreModel(network, short, "noise", time_scale=30.0)
    with torch.no_grad():
        for rule in (Ancestral(), Ancestral("large"), DDIM(0.5)):
            a = rule.build(long_chain, [30 / 60, 20 / 60, 10 / 60, 0.0]).solve(X.double(), KEYS)
            b = rule.build(short_chain, [1.0, 2 / 3, 1 / 3, 0.0]).solve(X.double(), KEYS)
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("vp", [True, False])
def test_corrector_equals_the_published_loop(unet_score, vp):
    """Algorithms 4 and 5 of Song et al., with norms of each image."""
    score = unet_score.double() if vp else ScoreModel(unet_score.network, VE(), "noise").double()
    times = time_grid(0.3, 0.1, 3)
    x = X.double()
    with torch.no_grad():
        actual = PredictorCorrector(2, 0.2, "ancestral").build(score, times).solve(x, KEYS)
        for index, (t, s) in enumerate(itertools.pairwise(times)):
            x = Ancestral().build(score, times).step(index, x, KEYS)
            a = (score.schedule.alpha(t) / score.schedule.alpha(s)) ** 2 if vp else 1.0
            for k in (0, 1) if index < 2 else ():
                z, gradient = normals(Stage.CORRECTOR, 2 * index + k), score.score(x, s)
                sizes = [
                    2 * a * (0.2 * each.norm() / slope.norm()).item() ** 2
                    for each, slope in zip(z, gradient, strict=True)
                ]
                h = torch.tensor(sizes, dtype=torch.float64).reshape(-1, 1, 1, 1)
                x = x + h * gradient + (2 * h).sqrt() * z
    torch.testing.assert_close(actual, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("solver", "arguments", "message"),
    [
        ("ddim", {"gradient": "adjoint"}, 'gradient="adjoint" needs a solver that has one'),
        ({"name": "ddim", "eta": -0.1}, {}, "eta must be at least 0, got -0.1"),
        (
            {"name": "ddim", "eta": 1.2},
            {},
            "eta=1.2 takes more noise than step . of this grid leaves.*eta must be at most 1",
        ),
        ({"name": "ddim", "eta": 1.2}, {"t_end": 0.0}, "eta=1.2 takes more noise"),
        ({"name": "ddim", "churn": 1.0}, {}, "solver='ddim' has no option 'churn'; it has eta"),
        ({"name": "ancestral", "variance": "medium"}, {}, "variance='medium' is not one of small, large, learned"),
        (
            {"name": "ancestral", "variance": "learned"},
            {},
            'variance="learned" needs a score model with learned_variance=True',
        ),
        ("heun", {"steps": 10}, "2 a step with Heun, 1 in the last: got 10; give 9 or 11"),
        ({"name": "heun", "S_churn": -1.0}, {}, "S_churn must be at least 0, got -1.0"),
        (
            {"name": "heun", "S_tmin": 2.0, "S_tmax": 1.0},
            {},
            "S_tmin and S_tmax must be noise levels with 0 <= S_tmin <= S_tmax, got 2.0 and 1.0",
        ),
        ({"name": "heun", "S_noise": 0.0}, {}, "S_noise must be a positive number, got 0.0"),
        (
            {"name": "heun", "S_churn": 5.0},
            {"t_star": 0.45},
            "S_churn=5.0 raises the noise of step 0 to that of t=0.51.*beyond t_max=0.5",
        ),
        ({"name": "dpm++", "order": 3}, {}, "order must be 1 or 2, got 3"),
        ({"name": "dpm++", "eta": float("nan")}, {}, "eta must be at least 0, got nan"),
        ("exponential", {"steps": 2}, "2 a step with Exponential, 1 in the last: got 2; give 1 or 3"),
        ({"name": "exponential", "weights": "half"}, {}, "weights='half' is not one of dpm.., res"),
        (
            {"name": "predictor-corrector", "corrections": 2},
            {"steps": 9},
            "3 a step with PredictorCorrector, 1 in the last: got 9; give 7 or 10",
        ),
        ({"name": "predictor-corrector", "corrections": 0}, {}, "corrections must be an integer from 1, got 0"),
        ({"name": "predictor-corrector", "snr": 0.0}, {}, "snr must be a positive number, got 0.0"),
        (
            {"name": "predictor-corrector", "predictor": "euler"},
            {},
            "predictor='euler' is not one of ancestral, reverse_diffusion",
        ),
    ],
)
def test_refused_at_construction(unet_score, solver, arguments, message):
    unet_score.t_max = 0.5
    with pytest.raises(ValueError, match=message):
        DiffPure(unet_score, **{"t_star": 0.1, "steps": 9, "solver": solver, **arguments})


def test_eta_beyond_one_works_while_the_root_is_real(unet_score):
    """sigma_s^2 (1 - eta^2 (1 - (r_s / r_t)^2)) >= 0 up to the bound that the message names."""
    schedule = unet_score.schedule
    ratio = schedule.time_of(0.5), schedule.time_of(0.4)
    bound = (1 - 0.8**2) ** -0.5
    DDIM(bound - 1e-9).build(unet_score, ratio)
    with pytest.raises(ValueError, match=f"at most {bound:.6g} there"):
        DDIM(bound + 1e-9).build(unet_score, ratio)
    assert math.isclose(bound, 5 / 3)


def test_names():
    for name, kind in {
        "ddim": DDIM,
        "ancestral": Ancestral,
        "heun": Heun,
        "dpm++": DPMSolver,
        "exponential": Exponential,
    }.items():
        assert SOLVERS[name] is kind
        assert make(name) == kind()
    assert make({"name": "predictor-corrector", "snr": 0.1}) == PredictorCorrector(snr=0.1)


def test_the_solver_that_the_documentation_writes():
    """Euler's method in r is DDIM without noise."""
    lines = textwrap.dedent(base.__doc__.split("most are")[1].split("`purify.DiffPure")[0].split(":\n", 1)[1])
    names = {}
    exec(lines, {"dataclass": dataclass, "StepRule": base.StepRule, "scaled": base.scaled}, names)
    score = ScoreModel(GaussianNoise(LinearVP(), 0.2, 0.5), LinearVP(), "noise")
    x, keys = torch.rand(2, 1, 3, 3, dtype=torch.float64), noise_keys(0, range(2), 0)
    ours, ddim = (DiffPure(score, 0.3, 7, solver=solver) for solver in (names["Euler"](), DDIM()))
    torch.testing.assert_close(ours(x, keys), ddim(x, keys), rtol=1e-12, atol=1e-12)
