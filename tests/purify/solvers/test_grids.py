"""The times that solvers walk, for all images alike or one by one."""

import itertools
import math

import pytest
import torch

from purify import DiffPure, ScoreModel, noise_keys, schedules, solvers
from purify.networks.gaussian import GaussianNoise
from purify.solvers.grids import time_grid

PROCESSES = [schedules.LinearVP(), schedules.DiscreteVP.cosine(), schedules.SubVP(), schedules.VE(), schedules.EDM()]


def ratio(schedule, t):
    return schedule.sigma(t) / schedule.alpha(t)


def ends(schedule):
    """Times with 2 % and 80 % of noise over signal."""
    return schedule.time_of(0.8), schedule.time_of(0.02)


@pytest.mark.parametrize("schedule", PROCESSES, ids=lambda s: type(s).__name__)
def test_karras_and_log_snr_have_equal_steps_of_their_function_of_the_noise(schedule):
    start, end = ends(schedule)
    for grid, function in (("karras", lambda r: r ** (1 / 7)), ("log_snr", math.log)):
        times = time_grid(start, end, 9, grid, schedule)
        assert (len(times), times[0], times[-1]) == (10, start, end)
        steps = [function(ratio(schedule, a)) - function(ratio(schedule, b)) for a, b in itertools.pairwise(times)]
        assert steps == pytest.approx([steps[0]] * 9, rel=1e-6)


def test_karras_grid_of_the_paper():
    """Karras et al. 2022, eq. 5, with sigma_max = 80, sigma_min = 0.002 and rho = 7."""
    times = time_grid(80.0, 0.002, 17, "karras", schedules.EDM())
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert list(times) == pytest.approx(expected, rel=1e-12)


def test_chain_takes_whole_steps_of_ddpms_chain():
    assert time_grid(0.1, 0.0, 100, "chain") == tuple(k / 1000 for k in range(100, -1, -1))
    assert time_grid(0.1, 0.0, 3, "chain") == (0.1, 0.067, 0.033, 0.0)


@pytest.mark.parametrize("arguments", [(0.1005, 0.0, 5), (0.1, 1e-5, 5), (0.1, 0.0, 101)])
def test_chain_refuses_times_that_it_does_not_have(arguments):
    with pytest.raises(ValueError, match='grid="chain" takes up to'):
        time_grid(*arguments, "chain")


@pytest.mark.parametrize("grid", ["karras", "log_snr"])
def test_grids_over_the_noise_need_some_at_the_end(grid):
    with pytest.raises(ValueError, match=f"grid='{grid}' needs noise at its end"):
        time_grid(0.1, 0.0, 5, grid, schedules.LinearVP())


@pytest.mark.parametrize("grid", ["uniform", "quadratic", "karras", "log_snr"])
@pytest.mark.parametrize("schedule", PROCESSES, ids=lambda s: type(s).__name__)
def test_times_of_each_image_are_those_of_its_own_t_star(grid, schedule):
    start, end = ends(schedule)
    t_star = torch.tensor([start, 0.5 * (start + end)], dtype=torch.float64)
    together = time_grid(t_star, end, 6, grid, schedule)
    alone = torch.tensor([time_grid(t, end, 6, grid, schedule) for t in t_star.tolist()], dtype=torch.float64)
    torch.testing.assert_close(together, alone.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["exact", "backprop", "adjoint", "bpda"])
def test_a_t_star_for_each_image(unet_score, mode, eta):
    t_star = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64)
    score, keys = unet_score.double(), noise_keys(0, torch.arange(3), 0)
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = DiffPure(score, t_star, 4, mode, eta=eta)(x, keys)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    for i, t in enumerate(t_star.tolist()):
        image = x[i : i + 1].detach().requires_grad_()
        alone = DiffPure(score, t, 4, mode, eta=eta)(image, keys[i : i + 1])
        torch.testing.assert_close(y[i : i + 1], alone, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            gradient[i : i + 1], torch.autograd.grad(alone.square().sum(), image)[0], rtol=1e-9, atol=1e-12
        )


def test_random_t_star_is_uniform_and_of_each_image_and_key(unet_score):
    purifier = DiffPure(unet_score, 0.1, 2, t_delta=0.05)
    keys = noise_keys(0, torch.arange(2000), 0)
    x = torch.zeros(2000, 1, 4, 4)
    starts = purifier.path(x, keys).times[0]
    assert starts.min() > 0.05 and starts.max() < 0.15
    for share in (0.25, 0.5, 0.75):
        assert starts.quantile(share).item() == pytest.approx(0.05 + 0.1 * share, abs=5 * 0.1 * math.sqrt(0.25 / 2000))
    assert torch.equal(purifier.path(x[:3], keys[[7, 3, 5]]).times[0], starts[[7, 3, 5]])
    assert not torch.equal(purifier.path(x, noise_keys(0, torch.arange(2000), 1)).times[0], starts)


def test_vp_times_on_other_processes():
    """A random t_star in VP time diffuses an EDM model to the same ratio of noise to signal."""
    vp, edm = schedules.LinearVP(), schedules.EDM()
    score = ScoreModel(GaussianNoise(edm, 0.0, 0.5), edm, "noise")
    t_star = torch.tensor([0.05, 0.1], dtype=torch.float64)
    times = DiffPure(score, t_star, 3, time="vp").path(torch.zeros(2, 1, 4, 4), torch.arange(2)).times
    torch.testing.assert_close(times[0], ratio(vp, t_star))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t_star": torch.tensor([0.1, 1.2])}, r"t_star must lie in \(0, 1\], got \(2 times from 0.1 to 1.2\)"),
        (
            {"t_star": torch.tensor([[0.1]])},
            r"t_star must be a number, or floating-point times \(b,\), got torch.float32 of shape \(1, 1\)",
        ),
        ({"t_delta": 0.1}, r"t_star must lie in \(0, 1\], got 0.1 \+- 0.1"),
        ({"t_delta": -0.1}, "t_delta must be at least 0, got -0.1"),
        (
            {"t_delta": 0.01, "noising": "discrete"},
            'noising="discrete" is a chain that all images leave at the same step',
        ),
        ({"t_delta": 0.01, "grid": "diffpure"}, "grid='diffpure' has the same times for all images"),
        ({"t_end": 0.0, "gradient": "adjoint"}, "t_end=0 has no score, which the adjoint asks for there"),
        ({"solver": "tochsde"}, "solver='tochsde' is not one of torchsde"),
        ({"solver": "torchsde", "eta": -1.0}, "eta must be at least 0, got -1.0"),
        ({"solver": {"name": "torchsde", "order": 2}}, "solver='torchsde' has no option 'order'; it has method, eta"),
        ({"solver": solvers.TorchSDE(), "eta": 0.5}, "eta are options of a solver given by name"),
        (
            {"solver": {"name": "heun", "S_churn": "lots"}, "steps": 9},
            "solver='heun': an option is not of the type that is expected of it",
        ),
        ({"solver": {"name": "torchsde", "eta": 0.5}, "eta": 1.0}, "has eta already: give each option once"),
        ({"solver": {"eta": 0.5}}, "has no name, which must be one of torchsde"),
    ],
)
def test_what_does_not_fit_is_refused_at_construction(unet_score, arguments, message):
    with pytest.raises(ValueError, match=message):
        DiffPure(unet_score, **{"t_star": 0.1, "steps": 5, **arguments})


def late():
    """A process that begins at t = 0.5, with noise."""
    process = schedules.Functions(torch.ones_like, lambda t: t, t_min=0.5, t_max=2.0)
    return ScoreModel(GaussianNoise(process, 0.0, 0.5), process, "noise")


def test_a_process_that_begins_later_is_walked_down_to_its_beginning():
    assert DiffPure(late(), 1.0, 4).path(torch.zeros(1, 1, 4, 4), torch.arange(1)).times == (
        1.0,
        0.875,
        0.75,
        0.625,
        0.5,
    )
    with pytest.raises(ValueError, match=r"t_end=0.1 lies before 0.5, where this score model's process begins"):
        DiffPure(late(), 1.0, 4, t_end=0.1)


def test_an_empty_batch_stays_empty(unet_score):
    x = torch.zeros(0, 1, 28, 28, requires_grad=True)
    assert torch.autograd.grad(DiffPure(unet_score, 0.1, 2)(x).sum(), x)[0].shape == x.shape


def test_a_batch_of_another_size_than_t_star_is_refused(unet_score):
    with pytest.raises(ValueError, match="t_star has 3 times, one for each image of a batch, x has 2 images"):
        DiffPure(unet_score, torch.tensor([0.1, 0.1, 0.2]), 2)(torch.zeros(2, 1, 28, 28))
