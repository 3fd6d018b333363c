"""The diffusion classifier against the losses written out, for classes that are Gaussians."""

import golden
import pytest
import torch
from torch import nn

from purify import DefendedClassifier, DiffPure, DiffusionClassifier, Likelihood, ScoreModel, noise_keys
from purify.networks.gaussian import GaussianNoise
from purify.noise import Purpose, Stage, derive_keys, standard_normal
from purify.schedules import EDM, LinearVP

KEYS = noise_keys(0, torch.arange(6), 0)
MEANS = torch.tensor([-0.5, 0.0, 0.6], dtype=torch.float64)


class Classes(nn.Module):
    """Exact noise of three Gaussian classes; `bent` makes it nonlinear."""

    def __init__(self, schedule, bent=0.0):
        super().__init__()
        self.parts = nn.ModuleList(GaussianNoise(schedule, float(mean), 0.3) for mean in MEANS)
        self.bent = bent

    def forward(self, x, t, labels):
        noise = self.parts[int(labels[0])](x, t)
        return noise + self.bent * torch.sin(3 * x.roll(1, 3)) * x


def classes(schedule=None, bent=0.0):
    schedule = schedule or LinearVP()
    return ScoreModel(Classes(schedule, bent), schedule, "noise", classes=3)


def images(labels):
    return (
        MEANS[labels].reshape(-1, 1, 1, 1)
        + 0.3 * torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(0))
        + 1
    ) / 2


@pytest.mark.parametrize("schedule", [LinearVP(), EDM()], ids=["vp", "edm"])
def test_logits_are_the_losses(schedule):
    x, vp = torch.rand(6, 1, 8, 8, dtype=torch.float64), LinearVP()
    expected = torch.zeros(6, 3, dtype=torch.float64)
    for index, (t, weight) in enumerate(zip((0.1, 0.3, 0.5), (1, 2, 1), strict=True)):
        alpha, sigma = vp.alpha(t), vp.sigma(t)
        noise = standard_normal(KEYS, Stage.LOSS, index, (1, 8, 8), torch.float64)
        for label, mean in enumerate(MEANS):
            predicted = sigma * (alpha * (2 * x - 1) + sigma * noise - alpha * mean) / (alpha**2 * 0.09 + sigma**2)
            expected[:, label] -= weight / 4 * (predicted - noise).square().mean((1, 2, 3)) / 0.05
    model = DiffusionClassifier(classes(schedule), 3, temperature=0.05, weights=(1, 2, 1), t_max=0.6)
    torch.testing.assert_close(model(x, KEYS), expected, rtol=0, atol=1e-10)


def test_it_classifies():
    labels = torch.arange(3).repeat(20)
    model = DiffusionClassifier(classes(), 10)
    assert torch.equal(model(images(labels), noise_keys(0, torch.arange(60), 0)).argmax(1), labels)


def test_gradients():
    """Bitwise those of backprop up to the order of the sum, and finite differences; memory is one evaluation's."""
    score, x = classes(bent=0.3), images(torch.tensor([0, 1, 2, 0, 1, 2]))
    weight = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for mode in ("exact", "backprop"):
        saved = []
        y = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=saved: kept.append(t.numel()) or t, lambda t: t):
            value = (DiffusionClassifier(score, 5, gradient=mode)(y, KEYS) * weight).sum()
        gradients.append(torch.autograd.grad(value, y)[0])
        assert (sum(saved) < 6 * x.numel()) == (mode == "exact")
    assert golden.relative_error(*gradients) < 1e-14
    model, direction, h = (
        DiffusionClassifier(score, 5),
        torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
        1e-5,
    )
    with torch.no_grad():
        difference = ((model(x + h * direction, KEYS) - model(x - h * direction, KEYS)) * weight).sum() / (2 * h)
    torch.testing.assert_close((gradients[0] * direction).sum(), difference, rtol=1e-7, atol=0)


def test_an_image_does_not_depend_on_its_batch_and_calls_without_keys_are_random():
    model, x = DiffusionClassifier(classes(), 3), images(torch.tensor([0, 1, 2, 0, 1, 2]))
    torch.testing.assert_close(model(x[2:3], KEYS[2:3]), model(x, KEYS)[2:3], rtol=0, atol=1e-12)
    first, second = model(x), model(x)
    assert not torch.equal(first, second) and torch.equal(DiffusionClassifier(classes(), 3)(x), first)


def test_the_robust_diffusion_classifier_is_keyed(gaussian_score):
    """Behind a purifier it is handed keys of its own, and not its purifier's noise."""
    x, purifier, classifier = (
        images(torch.arange(3)),
        Likelihood(gaussian_score(0.0, 0.5), 2),
        DiffusionClassifier(classes(), 3),
    )
    model, keys = DefendedClassifier(purifier, classifier), KEYS[:3]
    expected = classifier(purifier(x, keys), derive_keys(keys, 0, 0, Purpose.CLASSIFIER))
    assert torch.equal(model(x, keys), expected) and torch.equal(model(x, keys), model(x, keys=keys))
    assert not torch.equal(model(x), model(x))
    y = x.clone().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(model(y, keys)[:, 0].sum(), y)[0],
        torch.func.grad(lambda z: model(z, keys)[:, 0].sum())(x),
        rtol=1e-9,
        atol=1e-12,
    )


def test_copies_do_not_share_the_classifiers_noise(gaussian_score):
    x, keys = images(torch.arange(3)), KEYS[:3]
    parts = DiffPure(gaussian_score(0.0, 0.5), 0.1, 2), DiffusionClassifier(classes(), 2)
    single, double = DefendedClassifier(*parts), DefendedClassifier(*parts, copies=2)
    expected = torch.stack([single(x, derive_keys(keys, copy, 0, Purpose.COPY)) for copy in range(2)]).mean(0)
    torch.testing.assert_close(double(x, keys), expected, rtol=0, atol=1e-12)


def test_a_trajectory_ends_in_the_keyed_classifiers_logits(gaussian_score):
    x, keys = images(torch.arange(3)), KEYS[:3]
    model = DefendedClassifier(DiffPure(gaussian_score(0.0, 0.5), 0.1, 2), DiffusionClassifier(classes(), 2))
    assert torch.equal(model.trajectory(x, keys).result, model(x, keys))


def test_a_wrapper_that_drops_keys_is_said(gaussian_score):
    with pytest.warns(
        UserWarning,
        match=(
            "the classifier's forward has no parameter `keys`, so the DiffusionClassifier inside draws fresh noise at"
            " every call"
        ),
    ):
        DefendedClassifier(DiffPure(gaussian_score(0.0, 0.5), 0.1, 2), nn.Sequential(DiffusionClassifier(classes(), 2)))


def test_bad_arguments(unet_score):
    with pytest.raises(
        ValueError, match="score must be a class-conditional score model without a class, this one has no classes"
    ):
        DiffusionClassifier(unet_score)
    with pytest.raises(ValueError, match="this one has class 1 chosen"):
        DiffusionClassifier(classes().with_class(1))
    for arguments, message in (
        ({"times": 0}, "times must be a positive integer, got 0"),
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        ({"weights": (1.0,)}, "weights must be 10 numbers from 0, one for each time and not all 0"),
        ({"weights": (0.0,) * 10}, "weights must be 10 numbers from 0"),
        ({"t_max": 1.5}, r"t_max must lie in \(0, 1\], got 1.5"),
        ({"gradient": "bpda"}, "gradient='bpda' is not one of exact, backprop"),
    ):
        with pytest.raises(ValueError, match=message):
            DiffusionClassifier(classes(), **arguments)
    short = ScoreModel(Classes(LinearVP()), LinearVP(), "noise", classes=3, t_max=0.5)
    with pytest.raises(
        ValueError, match=r"the last time is 0.95 in the score model's own time, beyond 0.5, .*: lower t_max=1"
    ):
        DiffusionClassifier(short)
    model = DiffusionClassifier(classes(), 2)
    with pytest.raises(ValueError, match=r"x must be images of shape \(b, c, h, w\)"):
        model(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"keys must be int64 of shape \(3,\)"):
        model(torch.zeros(3, 1, 8, 8), KEYS)
