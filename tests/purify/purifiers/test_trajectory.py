"""The states on the way: values against the scheme's own equations, gradients of losses on several of them against all
else that computes them.
"""

import golden
import pytest
import torch
from torch import nn

from purify import DefendedClassifier, DiffPure, FixedRandomness, Langevin, Purifier, Resized, noise_keys
from purify.noise import Stage, standard_normal

KEYS = noise_keys(0, torch.arange(3), 0)
X = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def weights(like, seed):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


def loss(trajectory):
    """A smooth loss on everything."""
    parts = [
        trajectory.result,
        trajectory.states - trajectory.noised,
        *([] if trajectory.estimates is None else [trajectory.estimates]),
    ]
    return sum((weights(part, seed) * part + 0.1 * part.square()).sum() for seed, part in enumerate(parts))


def value_and_gradient(model, x, **options):
    x = x.clone().requires_grad_()
    value = loss(model.trajectory(x, KEYS, **options))
    return value.detach(), torch.autograd.grad(value, x)[0]


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).double()


@pytest.mark.parametrize(
    "make",
    [lambda score, mode: DiffPure(score, 0.1, 7, mode), lambda score, mode: Langevin(score, 7, mode)],
    ids=["diffpure", "langevin"],
)
def test_states_are_those_of_the_path(unet_score, make):
    purifier = make(unet_score.double(), "exact")
    x = X.double()
    path = purifier.path(2 * x - 1, KEYS)
    state, expected = path.start(2 * x - 1), []
    for index in range(7):
        expected.append((state + 1) / 2)
        state = path.solver.step(index, state, KEYS, 2 * x - 1)
    expected.append((state + 1) / 2)
    inside = purifier.trajectory(x, KEYS, points=8)
    assert torch.equal(inside.states, torch.stack(expected))
    assert torch.equal(inside.result, inside.states[-1]) and torch.equal(inside.result, purifier(x, KEYS))
    assert torch.equal(inside.states[0], inside.noised[0])
    assert inside.estimates is None


def test_points_are_evenly_spaced_and_never_more_than_there_are(unet_score):
    every = DiffPure(unet_score, 0.1, 6).trajectory(X, KEYS, points=100).states
    assert len(every) == 7
    torch.testing.assert_close(
        DiffPure(unet_score, 0.1, 6).trajectory(X, KEYS, points=4).states, every[[0, 2, 4, 6]], rtol=0, atol=0
    )
    torch.testing.assert_close(
        DiffPure(unet_score, 0.1, 6).trajectory(X, KEYS, points=2).states, every[[0, 6]], rtol=0, atol=0
    )


@pytest.mark.parametrize(("method", "noising"), [("euler", "continuous"), ("srk", "continuous"), ("euler", "discrete")])
def test_noised_images_are_the_forward_process_at_the_times_of_the_states(unet_score, method, noising):
    purifier = DiffPure(unet_score.double(), 0.1, 6, method=method, noising=noising)
    steps = 6 if method == "euler" else 2
    schedule, noise = unet_score.schedule, standard_normal(KEYS, Stage.FORWARD, 0, (1, 28, 28), torch.float64)
    inside = purifier.trajectory(X.double(), KEYS, points=100)
    for i in range(steps + 1):
        t = 0.1 + (1e-5 - 0.1) * i / steps
        alpha, sigma = purifier.marginal() if i == 0 else (schedule.alpha(t), schedule.sigma(t))
        torch.testing.assert_close(
            2 * inside.noised[i] - 1, alpha * (2 * X.double() - 1) + sigma * noise, rtol=0, atol=1e-12
        )


def test_estimates_are_the_denoised_states(unet_score):
    score = unet_score.double()
    inside = DiffPure(score, 0.1, 6).trajectory(X.double(), KEYS, points=4, estimates=True)
    for i, step in enumerate((0, 2, 4)):
        expected = score.denoised(2 * inside.states[i] - 1, 0.1 + (1e-5 - 0.1) * step / 6)
        torch.testing.assert_close(2 * inside.estimates[i] - 1, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimates", [False, True])
def test_exact_equals_backprop_for_losses_on_several_states(unet_score, estimates):
    for make in (
        lambda mode: DiffPure(unet_score.double(), 0.1, 7, mode),
        lambda mode: Langevin(unet_score.double(), 7, mode),
    ):
        value, exact = value_and_gradient(make("exact"), X.double(), estimates=estimates)
        reference, backprop = value_and_gradient(make("backprop"), X.double(), estimates=estimates)
        assert torch.equal(value, reference)
        assert golden.relative_error(exact, backprop) < 1e-12


def test_gradient_matches_finite_differences_through_resizes_and_classifier(unet_score):
    model = DefendedClassifier(
        Resized(DiffPure(unet_score.double(), 0.1, 5), (28, 28)),
        nn.Sequential(nn.Flatten(), nn.Linear(576, 10)).double(),
    )
    x = torch.rand(3, 1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    direction, h = weights(x, 7), 1e-5
    _, gradient = value_and_gradient(model, x, estimates=True)
    with torch.no_grad():
        up, down = (loss(model.trajectory(x + sign * h * direction, KEYS, estimates=True)) for sign in (1, -1))
    torch.testing.assert_close((gradient * direction).sum(), (up - down) / (2 * h), rtol=1e-7, atol=0)


def test_gradient_of_each_state_for_gaussian_data(gaussian_score):
    """Every step is affine with a known slope, and so is each estimate: alpha s^2 / v."""
    score, steps, t_star, t_end = gaussian_score(0.2, 0.5), 6, 0.3, 1e-5
    schedule = score.schedule
    times = [t_star + (t_end - t_star) * i / steps for i in range(steps + 1)]
    variance = [schedule.alpha(t) ** 2 * 0.25 + schedule.sigma(t) ** 2 for t in times]
    slopes = [schedule.alpha(t_star)]
    for i in range(steps):
        t, dt = times[i], times[i + 1] - times[i]
        slopes.append(slopes[-1] * (1 + dt * (schedule.drift(t) + schedule.diffusion(t) ** 2 / variance[i])))
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    for i in range(steps + 1):
        y = x.clone().requires_grad_()
        inside = DiffPure(score, t_star, steps).trajectory(y, KEYS, points=steps + 1, estimates=True)
        torch.testing.assert_close(
            torch.autograd.grad(inside.states[i].sum(), y, retain_graph=True)[0],
            torch.full_like(x, slopes[i]),
            rtol=1e-12,
            atol=0,
        )
        if i < steps:
            expected = slopes[i] * schedule.alpha(times[i]) * 0.25 / variance[i]
            torch.testing.assert_close(
                torch.autograd.grad(inside.estimates[i].sum(), y)[0], torch.full_like(x, expected), rtol=1e-12, atol=0
            )


def test_gradient_of_the_result_alone_is_that_of_forward_bitwise(unet_score):
    gradients = []
    for function in (
        DiffPure(unet_score, 0.1, 7),
        lambda x, keys: DiffPure(unet_score, 0.1, 7).trajectory(x, keys).result,
    ):
        x = X.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(x, KEYS).square().sum(), x)[0])
    assert torch.equal(*gradients)


def test_functional_gradients_and_autocast(unet_score):
    model = DiffPure(unet_score, 0.1, 5)
    _, expected = value_and_gradient(model, X, estimates=True)
    functional = torch.func.grad(lambda x: loss(model.trajectory(x, KEYS, estimates=True)))(X)
    torch.testing.assert_close(functional, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    gradients = []
    for mode in ("exact", "backprop"):
        x = X.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(DiffPure(unet_score, 0.1, 4, mode).trajectory(x, KEYS, estimates=True))
        gradients.append(torch.autograd.grad(value, x)[0])
    assert golden.relative_error(*gradients) < 1e-6  # cotangents that meet are added up in another order


def test_exact_keeps_no_graph_and_no_parameter_gradient(unet_score):
    network = unet_score.network.requires_grad_(True)

    def saved_by(mode):
        saved = []
        x = X.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            inside = DiffPure(unet_score, 0.1, 20, mode).trajectory(x, KEYS, estimates=True)
        (inside.states.sum() + inside.estimates.sum()).backward()
        return sum(saved)

    assert saved_by("exact") <= 10 * X.numel()
    assert all(p.grad is None for p in network.parameters())
    assert saved_by("backprop") > 100 * X.numel()


def test_defended_classifier_returns_logits(unet_score):
    purifier, classifier = DiffPure(unet_score.double(), 0.1, 6), linear()
    inside, images = (
        model.trajectory(X.double(), KEYS, 3, True) for model in (DefendedClassifier(purifier, classifier), purifier)
    )
    torch.testing.assert_close(
        inside.result, DefendedClassifier(purifier, classifier)(X.double(), KEYS), rtol=0, atol=0
    )
    assert torch.equal(inside.states, images.states)
    assert inside.estimates.shape == (2, 3, 10)
    torch.testing.assert_close(inside.estimates[1], classifier(images.estimates[1]))


def test_fixed_randomness_has_the_trajectory_of_its_key(unet_score):
    model = DefendedClassifier(DiffPure(unet_score.double(), 0.1, 4), linear())
    fixed, free = (
        FixedRandomness(model, 7).trajectory(X.double(), KEYS),
        model.trajectory(X.double(), torch.full((3,), 7)),
    )
    assert all(torch.equal(a, b) for a, b in zip(fixed[:3], free[:3], strict=True))
    assert torch.equal(fixed.result, FixedRandomness(model, 7)(X.double()))
    with pytest.raises(ValueError, match="the model Sequential has no method `trajectory`"):
        FixedRandomness(linear(), 7).trajectory(X.double())


def test_an_image_does_not_depend_on_its_batch_and_fresh_keys_are_fresh(unet_score):
    purifier = DiffPure(unet_score.double(), 0.1, 4)
    whole = purifier.trajectory(X.double(), KEYS, estimates=True)
    single = purifier.trajectory(X[1:2].double(), KEYS[1:2], estimates=True)
    for together, alone in zip(whole[1:], single[1:], strict=True):
        torch.testing.assert_close(together[:, 1:2], alone, rtol=0, atol=1e-12)
    assert not torch.equal(purifier.trajectory(X.double()).result, purifier.trajectory(X.double()).result)


@pytest.mark.parametrize("mode", ["adjoint", "bpda"])
def test_modes_whose_gradient_is_another_are_refused(unet_score, mode):
    for purifier in (DiffPure(unet_score, 0.1, 4, mode), Langevin(unet_score, 4, mode)):
        with pytest.raises(
            ValueError, match=f'gradients with gradient="exact" or "backprop" only, got gradient=\'{mode}\''
        ):
            DefendedClassifier(purifier, linear()).trajectory(X, KEYS)


def test_bad_input(unet_score):
    purifier = DiffPure(unet_score, 0.1, 4)
    for points in (1, 2.0):
        with pytest.raises(ValueError, match="points must be an integer from 2, got"):
            purifier.trajectory(X, KEYS, points=points)
    with pytest.raises(ValueError, match=r"x must be images of shape \(b, 1, h, w\)"):
        purifier.trajectory(X[0], KEYS)
    with pytest.raises(ValueError, match=r"x must be images of shape \(b, c, h, w\)"):
        Resized(purifier, (28, 28)).trajectory(X[0], KEYS)
    with pytest.raises(ValueError, match="the purifier Identity has no method `trajectory`"):
        DefendedClassifier(nn.Identity(), linear()).trajectory(X, KEYS)

    class Closed(Purifier):
        def purify(self, x, keys):
            return x

    torch.testing.assert_close(Closed(unet_score)(X, KEYS), X)
    with pytest.raises(ValueError, match="Closed does not tell its states on the way: it has no trajectory"):
        Closed(unet_score).trajectory(X, KEYS)
