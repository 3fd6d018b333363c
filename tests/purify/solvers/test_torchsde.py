"""The path through torchsde against a plain loop, and how torchsde is called."""

import math

import pytest
import torch
import torchsde

import purify.solvers.torchsde as module
from purify import DiffPure, noise_keys
from purify.gradients import MODES
from purify.noise import KeyedBrownian, Stage, standard_normal
from purify.solvers import TorchSDE
from purify.solvers.grids import time_grid
from purify.solvers.sde import ReverseSDE
from purify.solvers.torchsde import METHODS, SDESolver

KEYS = noise_keys(0, torch.arange(3), 0)
X = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def euler_loop(score, x, keys, times, eta):
    """Euler-Maruyama for the reverse SDE written as in Song et al., eq. 6, with the score itself."""
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        dt, f, g = s - t, score.schedule.drift(t), score.schedule.diffusion(t)
        z = standard_normal(keys, Stage.INCREMENT, i, tuple(x.shape[1:]), x.dtype)
        x = x + (f * x - (1 + eta**2) / 2 * g**2 * score.score(x, t)) * dt + eta * g * (-dt) ** 0.5 * z
    return x


@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_euler_path_equals_a_plain_loop(unet_score, grid, eta):
    score, x = unet_score.double(), X.double()
    times = time_grid(0.2, 1e-5, 7, grid)
    for method in ("euler", "milstein"):
        path = SDESolver(ReverseSDE(score, times, eta), method).solve(x, KEYS)
        torch.testing.assert_close(path, euler_loop(score, x, KEYS, times, eta), rtol=1e-12, atol=1e-12)


def test_whole_purifier_equals_a_plain_loop(unet_score):
    """Range, diffusion to t_star and reverse path together."""
    score, x = unet_score.double(), X.double()
    noise = standard_normal(KEYS, Stage.FORWARD, 0, (1, 28, 28), torch.float64)
    start = score.schedule.alpha(0.1) * (2 * x - 1) + score.schedule.sigma(0.1) * noise
    expected = (euler_loop(score, start, KEYS, time_grid(0.1, 1e-5, 5), 1.0) + 1) / 2
    torch.testing.assert_close(DiffPure(score, 0.1, 5)(x, KEYS), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("gradient", "function"),
    [("exact", "sdeint"), ("backprop", "sdeint"), ("bpda", "sdeint"), ("adjoint", "sdeint_adjoint")],
)
def test_torchsde_is_called(unet_score, monkeypatch, gradient, function):
    calls = []
    real = getattr(torchsde, function)

    def watch(*arguments, **named):
        calls.append(named)
        return real(*arguments, **named)

    monkeypatch.setattr(torchsde, function, watch)
    DiffPure(unet_score, 0.1, 4, gradient)(X.clone().requires_grad_(), KEYS)
    assert calls
    assert all(call["method"] == "euler" for call in calls)
    if gradient == "adjoint":
        assert calls[0]["adjoint_params"] == ()


@pytest.mark.parametrize(("method", "steps", "gradient"), [
    *(
        (method, steps, gradient)
        for method, steps in (("euler", 1), ("euler", 6), ("milstein", 6))
        for gradient in MODES
    ),
    *(("srk", 6, gradient) for gradient in MODES if gradient != "adjoint"),
])  # fmt: skip
def test_steps_counts_network_evaluations(unet_score, gradient, method, steps):
    seen = []
    unet_score.network.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        DiffPure(unet_score, 0.1, steps, gradient, method=method)(X, KEYS)
    assert len(seen) == steps


class Coarse(KeyedBrownian):
    """The Brownian motion of a clock that is `factor` times finer, on the coarse clock: coarse increments are sums of
    fine ones.
    """

    factor = 1

    def __call__(self, ta, tb, return_U=False, return_A=False):
        answer = super().__call__(ta * self.factor, tb * self.factor, return_U, return_A)
        if return_U:
            return answer[0] / self.factor**0.5, answer[1] / self.factor**1.5
        return answer / self.factor**0.5


@pytest.mark.parametrize(
    ("method", "order", "eta"),
    [("euler", 1, 1.0), ("euler", 1, 0.5), ("milstein", 1, 1.0), ("srk", 1.5, 1.0), ("srk", 1.5, 0.5)],
)
def test_strong_order(gaussian_score, monkeypatch, method, order, eta):
    """Against a fine solution on the same Brownian path; the order of torchsde's SRK is at least 1.5, and higher for a
    linear score.
    """
    score, finest = gaussian_score(0.2, 0.5), 128
    keys = noise_keys(0, torch.arange(40), 0)
    x = torch.rand(40, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(module, "KeyedBrownian", Coarse)

    def end(steps, method):
        monkeypatch.setattr(Coarse, "factor", finest // steps)
        return SDESolver(ReverseSDE(score, time_grid(0.3, 1e-3, steps), eta), method).solve(x, keys)

    reference = end(finest, "srk")
    errors = [(end(steps, method) - reference).square().mean().sqrt().item() for steps in (8, 16, 32)]
    slopes = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert min(slopes) > order - 0.15
    assert max(slopes) < order + 0.65


def test_srk_on_a_quadratic_grid(gaussian_score):
    """Every evaluation of a step knows the pace of its own piece: second order without noise, on any grid."""
    score = gaussian_score(0.2, 0.5)
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    alpha, sigma = score.schedule.alpha, score.schedule.sigma
    closed = alpha(0.3) * math.sqrt((alpha(1e-3) ** 2 / 4 + sigma(1e-3) ** 2) / (alpha(0.3) ** 2 / 4 + sigma(0.3) ** 2))
    errors = []
    for pieces in (32, 64):
        y = DiffPure(score, 0.3, 3 * pieces, solver=TorchSDE("srk", eta=0.0), grid="quadratic", t_end=1e-3)(
            x, KEYS[:1].repeat(2)
        )
        errors.append(abs((y[1] - y[0]).item() / closed - 1))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
def test_each_image_has_its_own_t_star(unet_score, grid, method):
    t_star = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64)
    together = DiffPure(unet_score.double(), t_star, 6, method=method, grid=grid)(X.double(), KEYS)
    for i in range(3):
        alone = DiffPure(unet_score, t_star[i].item(), 6, method=method, grid=grid)(
            X[i : i + 1].double(), KEYS[i : i + 1]
        )
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=1e-6)


def test_settings_that_are_refused():
    with pytest.raises(ValueError, match="method='heun' is not one of torchsde's Ito methods"):
        TorchSDE("heun")
    for eta in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="eta must be"):
            TorchSDE(eta=eta)


def test_global_generators_are_untouched(unet_score):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    x = X.clone().requires_grad_()
    DiffPure(unet_score, 0.1, 3)(x, KEYS).sum().backward()
    assert torch.equal(before, torch.get_rng_state())


def test_grids():
    assert time_grid(0.2, 1e-5, 1) == (0.2, 1e-5)
    uniform = torch.tensor(time_grid(0.2, 1e-5, 10), dtype=torch.float64)
    torch.testing.assert_close(uniform.diff(), torch.full((10,), -(0.2 - 1e-5) / 10, dtype=torch.float64))
    quadratic = time_grid(0.2, 1e-5, 10, "quadratic")
    assert quadratic[0] == 0.2 and quadratic[-1] == 1e-5
    assert quadratic[5] == pytest.approx(1e-5 + (0.2 - 1e-5) / 4)


def test_diffpures_grid():
    """Equal steps added up in float32, the last shortened; refused where rounding would make them overlap."""
    grid = torch.tensor(time_grid(0.1, 1e-5, 100, "diffpure"), dtype=torch.float64)
    torch.testing.assert_close(
        grid, torch.cat([torch.linspace(0.1, 0.001, 100, dtype=torch.float64), torch.tensor([1e-5])]), rtol=0, atol=5e-6
    )
    assert grid.tolist() == grid.float().tolist()
    for t_star, steps in ((0.001, 200), (0.02, 2000)):
        with pytest.raises(ValueError, match=f'grid="diffpure" cannot take steps={steps} from t_star={t_star}'):
            time_grid(t_star, 1e-5, steps, "diffpure")
