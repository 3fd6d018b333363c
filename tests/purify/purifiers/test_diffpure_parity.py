"""Our reverse SDE against DiffPure's, recorded with its own networks, conventions and Brownian increments."""

import math

import golden
import pytest
import torch

from purify import DiffPure, ScoreModel, gradients
from purify.schedules import LinearVP
from purify.solvers import torchsde as torchsde_solver
from purify.solvers.grids import time_grid
from purify.solvers.sde import ReverseSDE
from purify.solvers.torchsde import SDESolver

CASES = {
    "score_sde": ("score_sde.ddpmpp_small", dict(time_scale=999.0)),
    "guided_diffusion": ("guided_diffusion.small", dict(time_scale=1000.0, label_rounding="floor")),
}
T_STAR, STEPS = 0.1, 20


@pytest.fixture(params=CASES)
def case(request):
    network, labels = CASES[request.param]
    return ScoreModel(golden.network(network), LinearVP(), "noise", (3, 16, 16), **labels), golden.recorded(
        f"diffpure.{request.param}"
    )


def test_discrete_noising(case):
    _, io = case
    for count in (1, 100, 500, 1000):
        alpha, sigma = LinearVP().chain_marginal(count / 1000)
        assert alpha**2 == pytest.approx(float(io["alpha_bar_discrete"][count - 1]), rel=1e-5)
        assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-12)
    alpha, sigma = LinearVP().chain_marginal(T_STAR)
    assert golden.relative_error(alpha * io["x0"] + sigma * io["forward_noise"], io["x_tstar"]) < 1e-5


@pytest.mark.parametrize("s", ["0.9", "0.95", "0.9985"])
def test_drift_and_diffusion(case, s):
    score, io = case
    t = float(1 - torch.tensor(float(s)))  # DiffPure subtracts in float32
    dt = 1e-3
    sde = ReverseSDE(score, (t, t - dt))
    assert golden.relative_error(sde.drift(0, io["x_tstar"]).flatten(1) / dt, io[f"f({s})"]) < 1e-5
    assert golden.relative_error(torch.full((3, 1), sde.diffusion(0) / math.sqrt(dt)), io[f"g({s})"]) < 1e-5


@pytest.mark.parametrize("mode", ["exact", "backprop"])
def test_path_and_gradient(case, mode, monkeypatch):
    score, io = case
    times = time_grid(T_STAR, 1e-5, STEPS, "diffpure")

    class Recorded(torchsde_solver.KeyedBrownian):
        def __call__(self, ta, tb, return_U=False, return_A=False):
            self.queries += 1
            i = int(ta)
            return io["dW"][i] / math.sqrt(times[i] - times[i + 1])

    monkeypatch.setattr(torchsde_solver, "KeyedBrownian", Recorded)
    x = io["x_tstar"].requires_grad_()
    y = gradients.solve(
        SDESolver(ReverseSDE(score, times)), lambda image: image, x, torch.zeros(3, dtype=torch.int64), mode
    )
    (gradient,) = torch.autograd.grad((y.flatten(1) * io["v"]).sum(), x)
    assert golden.relative_error(y.flatten(1), io["y"]) < 1e-5
    assert golden.relative_error(gradient.flatten(1), io["grad_exact"]) < 1e-5


def test_the_purifier_takes_both_conventions(case, monkeypatch):
    """`DiffPure(noising="discrete", grid="diffpure")` is that path, from the image on: with the recorded noises it
    gives the recorded result.
    """
    score, io = case
    times = time_grid(T_STAR, 1e-5, STEPS, "diffpure")

    def recorded_normal(keys, stage, step, shape, dtype=torch.float32, node=0):
        noise = io["forward_noise"] if stage == 0 else io["dW"][step] / math.sqrt(times[step] - times[step + 1])
        return noise.reshape(len(keys), *shape)

    monkeypatch.setattr("purify.purifiers.diffpure.standard_normal", recorded_normal)
    monkeypatch.setattr("purify.noise.standard_normal", recorded_normal)
    x, keys = (io["x0"] + 1) / 2, torch.arange(3)
    y = DiffPure(score, T_STAR, STEPS, grid="diffpure", noising="discrete")(x, keys)
    assert golden.relative_error(2 * y.flatten(1) - 1, io["y"]) < 1e-5
    continuous = DiffPure(score, T_STAR, STEPS)(x, keys)
    assert 1e-4 < golden.relative_error(continuous, y) < 0.1


def test_floored_labels_repeat_and_skip():
    """In exact arithmetic t_star = 0.15 begins at label 150; rounded down in float32, 150 is skipped and 148 comes
    twice.
    """

    class Recorder(torch.nn.Module):
        def forward(self, x, labels):
            seen.append(float(labels[0]))
            return x

    seen = []
    for floor in (True, False):
        score = ScoreModel(Recorder(), LinearVP(), time_scale=1000.0, label_rounding="floor" if floor else None)
        for t in time_grid(0.15, 1e-5, 150, "diffpure")[:-1]:
            score.noise(torch.zeros(1, 1, 4, 4), t)
    floored, plain = seen[:150], seen[150:]
    assert floored[:4] == [149, 148, 148, 147]
    assert [round(label) for label in plain] == list(range(150, 0, -1))


def test_discrete_noising_is_refused_where_it_means_nothing(gaussian_score, unet_score):
    with pytest.raises(ValueError, match="t must be a multiple of 1/1000"):
        DiffPure(unet_score, 0.10005, 10, noising="discrete")
    with pytest.raises(ValueError, match="noising='sometimes' is not one of continuous, discrete"):
        DiffPure(unet_score, 0.1, 10, noising="sometimes")
