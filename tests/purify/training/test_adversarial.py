import pytest
import torch
from torch import nn
from torch.nn import functional as F

from purify import ScoreModel
from purify.networks import build
from purify.schedules import EDM, LinearVP
from purify.training.adversarial import (
    Perturbation,
    adversarial_denoising,
    adversarial_perturbation,
    mixed,
    rank_based_gaussian_mapping,
)
from purify.training.loop import Trainer, TrainingSettings
from purify.training.objectives import TimeSampling, denoising_loss, denoising_score_matching, draw_batch

IMAGES = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(32) % 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_classifier(channels=1):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 2)).eval().requires_grad_(False)


def convolutional_classifier():
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 13 * 13, 10))
    return layers.eval().requires_grad_(False)


def tiny_model():
    torch.manual_seed(0)
    return ScoreModel(
        build("small_unet", {"channels": 1, "base_channels": 8, "multipliers": [1], "blocks": 1}), LinearVP(), "v"
    )


def trainer(classifier, steps=4):
    loss = adversarial_denoising(TimeSampling(t_max=0.3), classifier, Perturbation(rounds=2), flip=True)
    return Trainer(
        tiny_model(),
        loss,
        IMAGES,
        LABELS,
        TrainingSettings(steps=steps, batch_size=8, warmup_steps=1, precision="float32"),
    )


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_mapping_gives_a_normal_sample_in_the_order_of_the_values():
    values = torch.randn(3, 2, 5, 4, generator=seeded(1)).exp()
    mapped = rank_based_gaussian_mapping(values, seeded())
    sample = torch.randn(3, 2, 20, generator=seeded())
    torch.testing.assert_close(mapped.flatten(2).sort(-1).values, sample.sort(-1).values, rtol=0, atol=0)
    assert torch.equal(mapped.flatten(2).argsort(-1), values.flatten(2).argsort(-1))


def test_the_mapping_orders_equal_values_at_random():
    """A sort alone would lay a flat gradient out as a ramp over the image."""
    mapped = rank_based_gaussian_mapping(torch.zeros(1, 1, 50, 50), seeded()).flatten()
    assert abs(torch.stack([mapped, torch.arange(2500.0)]).corrcoef()[0, 1]) < 0.05
    assert mapped.std().item() == pytest.approx(1, abs=0.05)


def test_the_perturbations_share_of_the_noise():
    """0.03 in the image, at most 0.3 of the noise; half of that where the value range is half as wide; mixed to unit
    variance.
    """
    settings, t = Perturbation(), torch.tensor([0.05, 0.1, 10.0])
    torch.testing.assert_close(
        settings.ratio(ScoreModel(nn.Identity(), EDM()), t).flatten(), torch.tensor([0.3, 0.3, 0.003])
    )
    narrow = ScoreModel(nn.Identity(), EDM(), value_range=(0.0, 1.0))
    torch.testing.assert_close(settings.ratio(narrow, t).flatten(), torch.tensor([0.3, 0.15, 0.0015]))
    vp = LinearVP()
    expected = 0.03 * vp.alpha(0.3) / vp.sigma(0.3)
    assert settings.ratio(
        ScoreModel(nn.Identity(), vp), torch.tensor([0.3], dtype=torch.float64)
    ).item() == pytest.approx(expected)
    noise, delta = torch.randn(2, 100_000, generator=seeded())
    assert mixed(noise, delta, torch.tensor(0.3)).std().item() == pytest.approx(1, abs=0.01)


def test_the_perturbation_follows_the_known_gradient(gaussian_score):
    """Exact score and linear classifier of two classes: the gradient is a positive multiple of w_other - w_label at
    every noise level, and so is the order.
    """
    score, classifier = gaussian_score(0.0, 0.5), linear_classifier(channels=3).double()
    x0 = torch.randn(6, 3, 8, 8, generator=seeded(2), dtype=torch.float64) / 2
    labels, t = LABELS[:6], torch.linspace(0.05, 0.9, 6, dtype=torch.float64)
    delta = adversarial_perturbation(score, classifier, x0, labels, t, Perturbation(), seeded())
    rows = classifier[1].weight.reshape(2, 3, 8, 8)
    direction = rows[1 - labels] - rows[labels]
    assert torch.equal(delta.flatten(2).argsort(-1), direction.flatten(2).argsort(-1))
    assert not delta.requires_grad


def test_the_perturbation_fools_the_classifier_more_than_noise_does(unet_score):
    """A nonlinear network and classifier, on noise that the perturbation has not seen."""
    classifier = convolutional_classifier()
    x0, labels, t = (
        torch.rand(16, 1, 28, 28, generator=seeded(1)) * 2 - 1,
        torch.arange(16) % 10,
        torch.full((16,), 0.1),
    )
    settings = Perturbation(strength=0.1)
    delta = adversarial_perturbation(unet_score, classifier, x0, labels, t, settings, seeded())
    other = torch.randn(x0.shape, generator=seeded(5))
    fresh = torch.randn(x0.shape, generator=seeded(6))
    losses = []
    for perturbation in (delta, other):
        x_t = unet_score.diffuse(x0, mixed(fresh, perturbation, settings.ratio(unet_score, t)), t)
        losses.append(
            F.cross_entropy(classifier(unet_score.to_unit(unet_score.denoised(x_t, t))), labels, reduction="none")
        )
    assert (losses[0] > losses[1]).all()


def test_without_strength_it_is_denoising_score_matching():
    times, model = TimeSampling(t_min=0.1), tiny_model()
    plain = denoising_score_matching(times, flip=True, weighting="snr")(model, IMAGES, LABELS, seeded())
    loss = adversarial_denoising(times, linear_classifier(), Perturbation(strength=1e-9), flip=True, weighting="snr")(
        model, IMAGES, LABELS, seeded()
    )
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)


def test_training_moves_the_network_and_nothing_else_and_resumes_exactly(tmp_path):
    classifier = linear_classifier()
    before, whole = weights(classifier).clone(), trainer(classifier)
    start = weights(whole.model).clone()
    whole.run()
    assert not torch.equal(weights(whole.model), start)
    assert torch.equal(weights(classifier), before) and all(p.grad is None for p in classifier.parameters())
    first, second = trainer(classifier), trainer(classifier)
    first.run(stop=lambda step, loss: step == 2)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second.run()
    assert torch.equal(weights(second.model), weights(whole.model))


def test_the_search_adds_nothing_to_the_gradient():
    """The step's gradient is that of the denoising loss at the perturbed noise, the perturbation taken as given."""
    model, classifier, times, settings = (
        tiny_model(),
        linear_classifier(),
        TimeSampling(t_min=0.1),
        Perturbation(rounds=3),
    )
    model.requires_grad_(True)
    loss = adversarial_denoising(times, classifier, settings)(model, IMAGES, LABELS, seeded())
    generator = seeded()
    x0, noise, t = draw_batch(model, IMAGES, times, False, generator)
    delta = adversarial_perturbation(model, classifier, x0, LABELS, t, settings, generator)
    assert all(p.grad is None for p in model.parameters())
    expected = denoising_loss(model, x0, mixed(noise, delta, settings.ratio(model, t)), t)
    for ours, theirs in zip(
        *(torch.autograd.grad(value, model.parameters()) for value in (loss, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Perturbation(rounds=0), "rounds must be at least 1, got 0"),
        (lambda: Perturbation(strength=0.0), "strength must be a positive number, got 0.0"),
        (lambda: Perturbation(largest=1.5), "largest must lie in"),
        (lambda: adversarial_denoising(TimeSampling(), linear_classifier().train()), "classifier is in training mode"),
        (
            lambda: adversarial_denoising(TimeSampling(), linear_classifier(), weighting="p2"),
            "weighting='p2' is not one of",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
