"""Resize, crop and normalisation inside the model, against torchvision's transforms on tensors, and gradients through
all of it.
"""

import pytest
import torch
from torch import nn
from torchvision import transforms

from benchmarks import load_classifier
from benchmarks.classifiers import Preprocessed
from purify import DefendedClassifier, DiffPure, Resized, ScoreModel, noise_keys
from purify.networks import build
from purify.schedules import LinearVP

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def images(*shape, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", [(40, 40), (37, 53), (53, 37), (20, 31), (31, 24), (24, 31), (33, 24)])
@pytest.mark.parametrize("resize", [24, 27, (26, 29)])
def test_equals_torchvision(shape, interpolation, antialias, resize):
    x = images(2, 3, *shape)
    mode = transforms.InterpolationMode(interpolation)
    expected = transforms.Compose(
        [
            transforms.Resize(resize, mode, antialias=antialias),
            transforms.CenterCrop((24, 24)),
            transforms.Normalize(MEAN, STD),
        ]
    )(x)
    assert torch.equal(Preprocessed(nn.Identity(), MEAN, STD, (24, 24), resize, interpolation, antialias)(x), expected)


def test_images_of_the_model_s_size_are_only_normalised():
    x = images(2, 3, 24, 24)
    expected = transforms.Normalize(MEAN, STD)(x)
    assert torch.equal(Preprocessed(nn.Identity(), MEAN, STD, (24, 24), 28)(x), expected)
    assert torch.equal(Preprocessed(nn.Identity(), MEAN, STD)(x), expected)


def test_without_resize_the_shorter_side_becomes_the_crop():
    x = images(1, 3, 40, 60)
    assert torch.equal(
        Preprocessed(nn.Identity(), MEAN, STD, (20, 20))(x), Preprocessed(nn.Identity(), MEAN, STD, (20, 20), 20)(x)
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_gradients_pass_the_resize_the_crop_and_the_normalisation(interpolation):
    model = Preprocessed(nn.Sequential(nn.Flatten(), nn.Linear(75, 2)), MEAN, STD, (5, 5), 6, interpolation).double()
    assert model.mean.dtype == torch.float64
    assert torch.autograd.gradcheck(model, images(1, 3, 9, 7, dtype=torch.float64).requires_grad_())


def test_the_preset_is_no_part_of_the_weights():
    assert not Preprocessed(nn.Identity(), MEAN, STD).state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": (0.5,)}, "one entry a channel"),
        ({"std": (0.5, 0.5, 0.0)}, "std positive"),
        ({"interpolation": "nearest"}, 'must be "bilinear" or "bicubic"'),
        ({"resize": 30}, "needs the size of the crop"),
        ({"size": (24, 24), "resize": 20}, "less than the crop"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocessed(**{"model": nn.Identity(), "mean": MEAN, "std": STD} | arguments)


def test_wrong_images():
    with pytest.raises(ValueError, match=r"shape \(b, 3, h, w\), got \(2, 1, 8, 8\)"):
        Preprocessed(nn.Identity(), MEAN, STD)(torch.zeros(2, 1, 8, 8))


@pytest.fixture
def defended():
    """Images of 20 pixels, a purifier at 16, back to 20, a classifier that resizes to 160."""
    torch.manual_seed(0)
    network = build("small_unet", {"channels": 3, "base_channels": 16, "multipliers": [1, 2], "blocks": 1})
    for parameter in network.parameters():
        if not parameter.any():  # zero-initialised layers would hide most of the network
            nn.init.normal_(parameter, std=0.05)
    score = ScoreModel(network, LinearVP(), "v", image_shape=(3, 16, 16)).requires_grad_(False).eval()
    classifier = load_classifier("timm:test_vit", weights="random")
    return lambda gradient: DefendedClassifier(
        Resized(DiffPure(score, 0.1, 3, gradient=gradient), (16, 16)), classifier
    )


def gradient_of(model, x, keys):
    x = x.clone().requires_grad_()
    logits = model(x, keys)
    (gradient,) = torch.autograd.grad(logits[:, :5].square().sum(), x)
    return logits.detach(), gradient


def test_purifier_and_classifier_of_other_sizes_have_exact_gradients(defended):
    x, keys = images(2, 3, 20, 20), noise_keys(0, torch.arange(2), 0)
    (logits, gradient), (reference, expected) = (gradient_of(defended(mode), x, keys) for mode in ("exact", "backprop"))
    assert logits.shape == (2, 1000) and torch.equal(logits, reference)
    assert torch.equal(gradient, expected) and (gradient != 0).float().mean() > 0.99


def test_the_gradient_is_the_slope_of_the_chain(defended):
    model = defended("exact").double()
    x, keys = images(1, 3, 20, 20, dtype=torch.float64), noise_keys(0, torch.arange(1), 0)
    _, gradient = gradient_of(model, x, keys)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = (model(x + step * direction, keys)[:, :5].square().sum() for step in (1e-5, -1e-5))
    assert torch.allclose((gradient * direction).sum(), (ahead - behind) / 2e-5, rtol=1e-6)
