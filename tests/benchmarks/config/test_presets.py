"""Every published setting under configs/, built from what it names with random weights: forward, and the gradient
through everything.
"""

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks import config
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError
from benchmarks.experiments import setup
from purify import DiffPure
from purify.zoo import CheckpointError, registry
from purify.zoo.official import build_network

PRESETS = sorted(
    str(p.relative_to(config.configs_folder()).with_suffix(""))
    for p in config.configs_folder().rglob("*.yaml")
    if "_" in p.stem
)
PRESETS = [
    name
    for name in PRESETS
    if name.split("/")[1].startswith(("diffpure_", "lee-kim_", "diffattack_", "gradual_", "gdmp_"))
]
FULL_WIDTH = {"cifar10/diffpure_wrn-28-10_linf"}
"""At the width of the paper; the others' score networks are narrower by a factor of 4, or 8 for ImageNet."""


def narrowed(entry):
    """The entry with the same layers, narrower."""
    settings = dict(entry.config)
    if entry.architecture == "guided_diffusion/unet":
        settings |= {
            "model_channels": settings["model_channels"] // 8,
            "num_head_channels": settings["num_head_channels"] // 8,
        }
    elif entry.architecture == "score_sde/ncsnpp":
        settings["model"] = settings["model"] | {"nf": settings["model"]["nf"] // 4}
    elif entry.architecture == "ddpm":
        settings["model"] = settings["model"] | {"ch": settings["model"]["ch"] // 4}
    return dataclasses.replace(entry, config=settings)


@pytest.fixture
def with_random_weights(tmp_path, monkeypatch):
    """with_random_weights(preset) -> its settings, two steps on images of its size, with the score network's file where
    it is looked for.
    """
    monkeypatch.setenv("PURIFY_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(setup, "warn_if_implausible", lambda *_: None)  # random weights denoise nothing

    def prepare(preset):
        side = {"cifar10": 32, "imagenet": 224, "celeba-hq": 256}[preset.split("/")[0]]
        images = np.random.RandomState(0).randint(0, 256, (2, 3, side, side), dtype=np.uint8)
        np.savez(tmp_path / "images.npz", images=images, labels=np.array([0, 1]))
        entry = registry.find(config.load(BenchConfig, preset).score.name)
        entry = entry if preset in FULL_WIDTH else narrowed(entry)
        entry = dataclasses.replace(entry, files=tuple(dataclasses.replace(file, size=None) for file in entry.files))
        monkeypatch.setattr(registry, "entries", lambda: {entry.name: entry})
        torch.manual_seed(0)
        network = build_network(entry.architecture, entry.config)
        for name, parameter in network.named_parameters():
            if not parameter.any() and name.endswith("weight"):  # layers that start at zero would hide the rest
                torch.nn.init.normal_(parameter, std=0.02)
        path = registry.path_of(entry)
        path.parent.mkdir(parents=True)
        torch.save(network.half().state_dict(), path)
        of_scheme = {
            "gradual": ["purifier.stages=[30,50]", "purifier.steps=[1,1]"],
            "gdmp": ["purifier.steps=2", "purifier.scale=600"],
        }
        shorter = of_scheme.get(preset.split("/")[1].split("_")[0], ["purifier.steps=2"])
        changes = [f"data.name=npz:{tmp_path / 'images.npz'}", "data.images=1", "classifier.weights=random", *shorter]
        return config.load(BenchConfig, preset, changes)

    return prepare


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_forward_and_backward(preset, with_random_weights):
    settings = with_random_weights(preset)
    parts = setup.load(settings, torch.device("cpu"), 1)
    defended = parts.defended()
    keys = torch.tensor([7])
    x = parts.x.clone().requires_grad_()
    logits = defended(x, keys)
    assert logits.shape == (1, {"cifar10": 10, "imagenet": 1000, "celeba-hq": 2}[preset.split("/")[0]])
    assert not torch.allclose(logits, parts.classifier(parts.x))
    (gradient,) = torch.autograd.grad(logits[0, 0], x)
    assert gradient.isfinite().all() and (gradient != 0).double().mean() > 0.9
    with torch.no_grad():
        step = 1e-3 * gradient.sign()
        slope = (defended(x + step, keys) - defended(x - step, keys))[0, 0] / 2e-3
    assert float(slope) == pytest.approx(float(gradient.abs().sum()), rel=0.1)


@pytest.mark.parametrize("preset", PRESETS)
def test_without_its_weights_a_preset_says_what_to_fetch(preset, tmp_path, monkeypatch):
    monkeypatch.setenv("PURIFY_MODELS", str(tmp_path))
    monkeypatch.setenv("PURIFY_DATA", str(tmp_path))
    settings = config.load(BenchConfig, preset)
    with pytest.raises(
        CheckpointError, match=f"{settings.score.name}.*{tmp_path}.*purify models fetch {settings.score.name}"
    ):
        settings.score.load()
    with pytest.raises(CheckpointError, match=f"not at {tmp_path}"):
        settings.classifier.load()
    with pytest.raises(ConfigError) as raised:
        setup.load(settings, torch.device("cpu"), 1)
    data, classifier, score = str(raised.value).split("\n")
    assert (
        str(tmp_path) in data
        and settings.classifier.name.rpartition(":")[2] in classifier
        and settings.score.name in score
    )
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    ("preset", "first", "last"),
    [
        # DiffPure's guided-diffusion runner: floor(1000 t) of the float32 times that it adds up.
        ("imagenet/diffpure_resnet50", [149, 148, 148, 147], [3, 2, 1]),
        ("cifar10/diffpure_wrn-28-10_linf", [0.1 * 999, 0.099 * 999, 0.098 * 999], [0.999]),
        ("cifar10/diffpure_wrn-28-10_l2", [0.075 * 999, 0.074 * 999], [0.999]),
        ("celeba-hq/diffpure_smiling", [499, 498, 497], [2, 1, 0]),  # DDPM's chain, counted from 0
    ],
)
def test_the_network_sees_the_published_labels(preset, first, last, with_random_weights, monkeypatch):
    """Through the registry's loader and the preset's own score section, at the preset's own number of steps."""
    settings = with_random_weights(preset)
    score = settings.score.load()
    seen = []
    monkeypatch.setattr(
        score.network, "forward", lambda x, labels: seen.append(float(labels[0])) or torch.zeros_like(x)
    )
    published = config.load(BenchConfig, preset).purifier
    purifier = DiffPure(score, **published.options)
    with torch.no_grad():
        purifier(torch.rand(1, 3, 32, 32))
    assert len(seen) == round(1000 * published.t_star)
    # rounding adds up
    assert seen[: len(first)] == pytest.approx(first, abs=1e-3) and seen[-len(last) :] == pytest.approx(last, abs=2e-3)
    assert purifier.marginal()[0] ** 2 == pytest.approx(float(alpha_bar(published.t_star)), rel=1e-9)


def alpha_bar(t_star):
    """Of DDPM's chain after 1000 t* steps, as DiffPure noises images."""
    betas = torch.linspace(0.1 / 1000, 20 / 1000, 1000, dtype=torch.float64)
    return (1 - betas).cumprod(0)[round(1000 * t_star) - 1]
