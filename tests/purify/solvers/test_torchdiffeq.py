"""The probability-flow ODE through torchdiffeq with fixed steps: measured orders, gradients, counts and refusals."""

import math
import warnings

import pytest
import torch
import torchdiffeq

from purify import DiffPure, ScoreModel, noise_keys
from purify.gradients import MODES
from purify.networks.gaussian import GaussianNoise
from purify.schedules import EDM, VE, LinearVP, SubVP
from purify.solvers import TorchDiffEq
from purify.solvers.torchdiffeq import ADAPTIVE, FIXED

KEYS = noise_keys(0, torch.arange(3), 0)
X = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))
PROCESSES = [(LinearVP(), 0.3, 1e-3), (SubVP(), 0.3, 0.1), (VE(), 0.5, 0.01), (EDM(), 1.0, 0.1)]
STD = 0.5


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def value_and_gradient(purifier, x, keys=KEYS):
    x = x.clone().requires_grad_()
    y = purifier(x, keys)
    (gradient,) = torch.autograd.grad((y * WEIGHT.to(x.dtype)).sum(), x)
    return y.detach(), gradient


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def flow(schedule, t_star, t_end):
    """Jacobian of the purifier by the exact probability flow of Gaussian data."""

    def v(t):
        return schedule.alpha(t) ** 2 * STD**2 + schedule.sigma(t) ** 2

    return schedule.alpha(t_star) * math.sqrt(v(t_end) / v(t_star))


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
@pytest.mark.parametrize(("schedule", "t_star", "t_end"), PROCESSES, ids=lambda value: type(value).__name__)
def test_measured_order(schedule, t_star, t_end, grid, method):
    score = ScoreModel(GaussianNoise(schedule, 0.2, STD), schedule, "noise")
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)  # equal keys: the difference is the Jacobian
    errors = []
    for pieces in (32, 64):
        y = DiffPure(
            score, t_star, pieces * FIXED[method], solver="torchdiffeq", method=method, grid=grid, t_end=t_end
        )(x, KEYS[:1].repeat(2))
        errors.append(abs((y[1] - y[0]).item() / flow(schedule, t_star, t_end) - 1))
    order = {"heun2": 2, "midpoint": 2}.get(method, FIXED[method])
    slope = math.log2(errors[0] / errors[1])
    assert slope > order - 0.2
    if isinstance(schedule, LinearVP):
        assert slope == pytest.approx(order, abs=0.2)


def test_euler_is_torchsdes_without_noise(unet_score):
    for grid in ("uniform", "quadratic"):
        y, gradient = value_and_gradient(
            DiffPure(unet_score.double(), 0.2, 4, solver="torchdiffeq", grid=grid), X.double()
        )
        y_sde, gradient_sde = value_and_gradient(DiffPure(unet_score, 0.2, 4, eta=0.0, grid=grid), X.double())
        torch.testing.assert_close(y, y_sde, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(gradient, gradient_sde, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_equals_backprop_bitwise(unet_score, dtype, method):
    score, x = unet_score.to(dtype), X.to(dtype)
    y, exact = value_and_gradient(DiffPure(score, 0.1, 12, "exact", TorchDiffEq(method), grid="quadratic"), x)
    y_reference, backprop = value_and_gradient(
        DiffPure(score, 0.1, 12, "backprop", TorchDiffEq(method), grid="quadratic"), x
    )
    assert torch.equal(y, y_reference)
    assert torch.equal(exact, backprop)


@pytest.mark.parametrize("method", FIXED)
def test_all_modes_give_the_same_values(unet_score, method):
    values = [
        value_and_gradient(
            DiffPure(unet_score.double(), 0.1, 12, mode, TorchDiffEq(method), grid="quadratic"), X.double()
        )[0]
        for mode in MODES
    ]
    for other in values[1:]:
        torch.testing.assert_close(values[0], other, rtol=1e-13, atol=1e-13)


class Smooth(torch.nn.Module):
    """A nonlinear network that is cheap."""

    def forward(self, x, t):
        return torch.tanh(x + t.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun2", 2), ("heun3", 3), ("rk4", 4)])
@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
def test_adjoint_converges_to_the_exact_gradient(grid, method, order):
    """As fast as the method."""
    score = ScoreModel(Smooth(), LinearVP(), "noise")
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    errors = []
    for pieces in (16, 32):
        exact, adjoint = (
            torch.autograd.grad(
                DiffPure(score, 0.3, pieces * FIXED[method], mode, TorchDiffEq(method), grid=grid, t_end=0.05)(
                    x, KEYS[:1]
                ).sum(),
                x,
            )[0]
            for mode in ("exact", "adjoint")
        )
        errors.append(relative_error(adjoint, exact))
    assert 0 < errors[-1] < 0.03
    assert math.log2(errors[0] / errors[1]) > order - 0.25


@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
@pytest.mark.parametrize("method", ["heun2", "rk4"])
def test_adjoint_of_a_linear_score(gaussian_score, method, grid):
    """Methods that look the same from both ends of a step have the exact gradient as their adjoint, if each evaluation
    belongs to its own piece both ways.
    """
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    exact, adjoint = (
        torch.autograd.grad(
            DiffPure(gaussian_score(0.2, STD), 0.3, 24, mode, TorchDiffEq(method), grid=grid)(x, KEYS[:1]).sum(), x
        )[0]
        for mode in ("exact", "adjoint")
    )
    torch.testing.assert_close(adjoint, exact, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("gradient", "function"),
    [("exact", "odeint"), ("backprop", "odeint"), ("bpda", "odeint"), ("adjoint", "odeint_adjoint")],
)
def test_torchdiffeq_is_called(unet_score, monkeypatch, gradient, function):
    calls = []
    real = getattr(torchdiffeq, function)

    def watch(*arguments, **named):
        calls.append(named)
        return real(*arguments, **named)

    monkeypatch.setattr(torchdiffeq, function, watch)
    DiffPure(unet_score, 0.1, 4, gradient, "torchdiffeq")(X.clone().requires_grad_(), KEYS)
    assert calls
    assert all(call["method"] == "euler" for call in calls)
    if gradient == "adjoint":
        assert calls[0]["adjoint_params"] == ()


@pytest.mark.parametrize("gradient", MODES)
@pytest.mark.parametrize("method", FIXED)
def test_steps_counts_network_evaluations(unet_score, gradient, method):
    seen = []
    unet_score.network.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        DiffPure(unet_score, 0.1, 12, gradient, TorchDiffEq(method))(X, KEYS)
    assert len(seen) == 12


@pytest.mark.parametrize("method", FIXED)
def test_each_image_has_its_own_t_star(unet_score, method):
    t_star = torch.tensor([0.05, 0.1, 0.2])
    together = DiffPure(unet_score.double(), t_star, 12, solver=TorchDiffEq(method), grid="quadratic")(X.double(), KEYS)
    for i in range(3):
        alone = DiffPure(unet_score, t_star[i].item(), 12, solver=TorchDiffEq(method), grid="quadratic")(
            X[i : i + 1].double(), KEYS[i : i + 1]
        )
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=1e-6)


def test_transforms_of_torch_func(unet_score):
    """torch.func.grad of the purifier equals autograd's gradient."""
    purifier = DiffPure(unet_score.double(), 0.1, 6, solver=TorchDiffEq("midpoint"))
    _, gradient = value_and_gradient(purifier, X.double())
    functional = torch.func.grad(lambda x: (purifier(x, KEYS) * WEIGHT).sum())(X.double())
    torch.testing.assert_close(functional, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(method="rk5"), "method='rk5' is not one of euler"),
        (dict(method="implicit_adams"), "multistep"),
        (dict(method="dopri8"), "use one of euler"),
        (dict(method="dopri5", rtol=0.0), "rtol must be a positive number, got 0.0"),
        (dict(method="dopri5", atol=float("nan")), "atol must be a positive number"),
        (dict(method="bosh3", max_evaluations=0), "max_evaluations must be a positive integer"),
        (dict(method="rk4", rtol=1e-6), "rtol=1e-06 is a setting of adaptive steps"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TorchDiffEq(**settings)


def test_combinations_that_are_refused(gaussian_score):
    with pytest.raises(ValueError, match="no option 'eta'"):
        DiffPure(gaussian_score(), 0.1, 4, solver="torchdiffeq", eta=0.5)
    with pytest.raises(ValueError, match="10 is not a multiple"):
        DiffPure(gaussian_score(), 0.1, 10, solver="torchdiffeq", method="rk4")
    for method in ("heun2", "rk4", *ADAPTIVE):
        with pytest.raises(ValueError, match="t_end=0 has no score"):
            DiffPure(gaussian_score(), 0.1, 12, solver="torchdiffeq", method=method, t_end=0.0)
    for method in ("euler", "midpoint", "heun3"):
        y = DiffPure(gaussian_score(), 0.1, 12, solver="torchdiffeq", method=method, t_end=0.0)(X.double(), KEYS)
        assert y.isfinite().all()
