"""Adaptive steps of torchdiffeq and torchsde: accuracy follows the tolerance, images do not see each other, gradients
are those of the accepted steps.
"""

import math
import warnings

import pytest
import torch
import torchdiffeq

from purify import DiffPure, ScoreModel, noise_keys
from purify.schedules import LinearVP
from purify.solvers import TorchDiffEq, TorchSDE
from purify.solvers.sde import ReverseSDE
from purify.solvers.torchdiffeq import ADAPTIVE, ODESolver, _Recorder, _runge_kutta

KEYS = noise_keys(0, torch.arange(3), 0)
X = torch.rand(3, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
STD = 0.5
ALL = [
    *(TorchDiffEq(method, 1e-3, 1e-3) for method in ADAPTIVE),
    TorchSDE("euler", adaptive=True, rtol=0.1, atol=0.1),
    TorchSDE("srk", adaptive=True),
]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class Smooth(torch.nn.Module):
    """A nonlinear network that is cheap, with a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0, dtype=torch.float64), requires_grad=False)

    def forward(self, x, t):
        return torch.tanh(self.scale * x.roll(1, -1) - x + t.reshape(-1, 1, 1, 1))


@pytest.fixture
def score():
    return ScoreModel(Smooth(), LinearVP(), "noise")


def value_and_gradient(purifier, x, keys=KEYS):
    x = x.clone().requires_grad_()
    y = purifier(x, keys[: len(x)])
    (gradient,) = torch.autograd.grad((y * WEIGHT).sum(), x)
    return y.detach(), gradient


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(("method", "tight"), [("dopri5", 1e-8), ("bosh3", 1e-6), ("adaptive_heun", 1e-5)])
def test_errors_of_torchdiffeq_follow_the_tolerance(gaussian_score, method, tight, steps):
    """Of the result against a fine solution, and of its gradient, in both modes, against the closed form of the
    flow.
    """
    score = gaussian_score(0.0, STD)
    alpha, sigma = score.schedule.alpha, score.schedule.sigma
    closed = alpha(0.3) * math.sqrt(
        (alpha(1e-3) ** 2 * STD**2 + sigma(1e-3) ** 2) / (alpha(0.3) ** 2 * STD**2 + sigma(0.3) ** 2)
    )
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fine = DiffPure(score, 0.3, 400, solver=TorchDiffEq("rk4"), t_end=1e-3)(x, KEYS[:1]).detach()
    worst = []
    for tolerance in (1e-3, tight):
        for gradient in ("exact", "adjoint"):
            y = DiffPure(score, 0.3, steps, gradient, TorchDiffEq(method, tolerance, tolerance), t_end=1e-3)(
                x, KEYS[:1]
            )
            (jacobian,) = torch.autograd.grad(y.sum(), x)
            worst.append(max((y - fine).abs().max().item(), (jacobian / closed - 1).abs().max().item()))
            assert worst[-1] < 20 * tolerance
    assert max(worst[2:]) < min(worst[:2])


def test_errors_of_torchsde_follow_the_tolerance(gaussian_score):
    """Against the same Brownian path at a much smaller tolerance."""
    score, x = (
        gaussian_score(0.2, STD),
        torch.rand(2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    results = [
        DiffPure(score, 0.3, 2, solver=TorchSDE("srk", adaptive=True, rtol=tol, atol=tol))(x, KEYS[:2])
        for tol in (1e-1, 1e-2, 2e-4)
    ]
    coarse, fine = (((result - results[-1]) ** 2).mean().sqrt().item() for result in results[:-1])
    assert fine < 0.3 * coarse
    assert coarse < 0.1


@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_results_do_not_depend_on_the_batch(score, solver):
    purifier = DiffPure(score, 0.1, 1, solver=solver)
    y, gradient = value_and_gradient(purifier, X)
    for i in range(2):
        x = X[i : i + 1].clone().requires_grad_()
        alone = purifier(x, KEYS[i : i + 1])
        torch.testing.assert_close(y[i : i + 1], alone.detach(), rtol=1e-6, atol=1e-6)
        (of_alone,) = torch.autograd.grad((alone * WEIGHT).sum(), x)
        torch.testing.assert_close(gradient[i : i + 1], of_alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_exact_equals_backprop(score, solver):
    results = [
        value_and_gradient(DiffPure(score, 0.1, 2, mode, solver), X[:1], KEYS[:1])
        for mode in ("exact", "backprop", "bpda")
    ]
    for value, _ in results[1:]:
        assert torch.equal(value, results[0][0])
    assert relative_error(results[0][1], results[1][1]) < 1e-12


@pytest.mark.parametrize(
    ("solver", "close"),
    [(TorchDiffEq("dopri5", 1e-8, 1e-8), 1e-5), (TorchSDE("srk", adaptive=True, rtol=0.03, atol=0.03), 0.03)],
    ids=["torchdiffeq", "torchsde"],
)
def test_exact_gradient_matches_finite_differences(score, solver, close):
    """Up to the tolerance: the difference also sees the steps change with the image, the gradient counts them as
    constants.
    """
    purifier, x = DiffPure(score, 0.1, 2, solver=solver), X[:1]
    _, gradient = value_and_gradient(purifier, x, KEYS[:1])
    direction = gradient / gradient.norm()
    h = 1e-3
    with torch.no_grad():
        difference = (
            (purifier(x + h * direction, KEYS[:1]) - purifier(x - h * direction, KEYS[:1])) * WEIGHT
        ).sum() / (2 * h)
    assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=close)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_backprop_reaches_the_networks_parameters(score, method):
    parameter = score.network.scale.requires_grad_()
    gradients = []
    for steps, solver in ((1, TorchDiffEq(method, 1e-5, 1e-5)), (40, TorchDiffEq("rk4"))):
        y = DiffPure(score, 0.1, steps, "backprop", solver, t_end=1e-2)(X, KEYS)
        gradients.append(torch.autograd.grad(y.square().sum(), parameter)[0].item())
    assert abs(gradients[1]) > 0.01
    assert gradients[0] == pytest.approx(gradients[1], rel=0.01)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_repeated_steps_are_torchdiffeqs(score, method):
    """The steps that gradients go through lead where torchdiffeq went."""
    ode = ReverseSDE(score, (0.1, 0.03, 1e-3), 0.0)
    solver = TorchDiffEq(method).build(score, ode.times)
    assert isinstance(solver, ODESolver)
    x = X[:1]
    for index in (0, 1):
        view = _Recorder(ode, index, solver.tolerance)
        ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
        with torch.no_grad():
            end = torchdiffeq.odeint(view, x, ts, method=method, rtol=1e-4, atol=1e-4, options={"step_t": ts})[-1]
        assert len(view.accepted) > 1
        assert sum(view.accepted[-1]) == pytest.approx(1, abs=1e-15)
        torch.testing.assert_close(
            _runge_kutta(ode, index, x, view.accepted, ADAPTIVE[method]), end, rtol=1e-11, atol=1e-11
        )


@pytest.mark.parametrize(
    "solver", [TorchDiffEq("bosh3", 1e-3, 1e-3), TorchSDE("srk", adaptive=True, rtol=0.1, atol=0.1)], ids=repr
)
def test_each_image_has_its_own_t_star(score, solver):
    t_star = torch.tensor([0.05, 0.1], dtype=torch.float64)
    purifier = DiffPure(score, t_star, 2, solver=solver)
    together, gradient = value_and_gradient(purifier, X[:2], KEYS[:2])
    for i in range(2):
        alone, of_alone = value_and_gradient(
            DiffPure(score, t_star[i].item(), 2, solver=solver), X[i : i + 1], KEYS[i : i + 1]
        )
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=1e-6)
    assert gradient.isfinite().all()


def test_transforms_of_torch_func(score):
    purifier = DiffPure(score, 0.1, 2, solver=TorchDiffEq("dopri5"))
    _, gradient = value_and_gradient(purifier, X[:1], KEYS[:1])
    functional = torch.func.grad(lambda x: (purifier(x, KEYS[:1]) * WEIGHT).sum())(X[:1])
    torch.testing.assert_close(functional, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "solver",
    [
        TorchDiffEq("dopri5", 1e-6, 1e-6, max_evaluations=20),
        TorchSDE(adaptive=True, rtol=1e-5, atol=1e-5, max_evaluations=20),
    ],
    ids=repr,
)
def test_work_is_limited(score, solver):
    with pytest.raises(RuntimeError, match="more than max_evaluations=20"):
        DiffPure(score, 0.1, 1, solver=solver)(X, KEYS)


@pytest.mark.parametrize("solver", [TorchDiffEq("dopri5"), TorchSDE(adaptive=True)], ids=repr)
def test_states_that_are_not_finite(score, solver):
    with pytest.raises(RuntimeError, match="adaptive steps broke down"):
        DiffPure(score, 0.1, 1, solver=solver)(X * torch.nan, KEYS)


def test_settings_that_are_refused(gaussian_score):
    with pytest.raises(ValueError, match="rtol must be a positive number, got -1"):
        TorchSDE(adaptive=True, rtol=-1)
    with pytest.raises(ValueError, match=r"atol=0\.5 is a setting of adaptive steps"):
        TorchSDE(atol=0.5)
    with pytest.raises(ValueError, match='gradient="adjoint" needs a solver'):
        DiffPure(gaussian_score(), 0.1, 4, "adjoint", TorchSDE(adaptive=True))
