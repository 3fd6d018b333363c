"""The packaged CIFAR-10 network and the reference that is made with it, on the images that PURIFY_TEST_DATA holds."""

import json
import os
from pathlib import Path

import pytest
import torch

from benchmarks import config, datasets
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError
from benchmarks.config.sweep import load_compare, load_sweep
from benchmarks.config.train import TrainConfig
from benchmarks.evaluation.denoising import denoising_errors, own_times
from benchmarks.experiments import setup
from benchmarks.experiments.bench import Bench
from benchmarks.reports import markdown
from benchmarks.reports.terminal import read_points, read_summary
from benchmarks.runs.fingerprints import fingerprint_model
from purify import load_score_model, networks
from purify.zoo import packaged_score_models, settings_of

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "cifar10"
PAGE = Path(__file__).parents[3] / "docs" / "results" / "cifar10.md"
needs_data = pytest.mark.skipif(
    "PURIFY_TEST_DATA" not in os.environ, reason="PURIFY_TEST_DATA is unset: no CIFAR-10 at hand"
)


@pytest.fixture
def test_images(monkeypatch):
    root = os.path.join(os.environ["PURIFY_TEST_DATA"], "cifar10")
    monkeypatch.setenv("PURIFY_DATA", root)
    return datasets.load("cifar10-test-1000")


def test_the_data_sets_name_stands_for_the_small_network():
    files = packaged_score_models()
    assert files["cifar10"] == files["cifar10-small"] and files["cifar10-small"].stat().st_size <= 10e6
    model = load_score_model("cifar10")
    assert model.image_shape == (3, 32, 32) and model.t_max == 0.3
    assert any("JPEG" in note for note in model.metadata["config"]["notes"])
    assert model.metadata["init"]["config"]["name"] == "cifar10-small"


@needs_data
def test_the_stored_quality_is_that_of_the_stored_weights(test_images):
    model = load_score_model("cifar10-small")
    times = own_times(model, (0.05, 0.1, 0.2))
    stored = model.metadata["quality"]["denoising_mse"]
    for name, error in denoising_errors(model, test_images, times).items():
        assert error == pytest.approx(stored[str(name)], rel=2e-3)  # weights in half precision


@needs_data
@pytest.mark.parametrize("name", ["reference", "reference_32"])
def test_the_reference_differentiates_end_to_end(name, test_images):
    settings = config.load(BenchConfig, f"cifar10/{name}", ["purifier.steps=3", "data.images=2"])
    parts = setup.load(settings, torch.device("cpu"), 2)
    x, keys = parts.x.clone().requires_grad_(), torch.tensor([3, 4])
    logits = parts.defended()(x, keys)
    (gradient,) = torch.autograd.grad(logits.gather(1, parts.y[:, None]).sum(), x)
    with torch.no_grad():
        step = 3e-4 * gradient.sign()
        change = parts.defended()(x + step, keys) - parts.defended()(x - step, keys)
    assert float(change.gather(1, parts.y[:, None]).sum() / 6e-4) == pytest.approx(
        float(gradient.abs().sum()), rel=0.05
    )


@needs_data
def test_every_attack_of_the_references_can_begin(test_images):
    for name in ("reference", "reference_32"):
        bench = Bench(config.load(BenchConfig, f"cifar10/{name}", ["data.images=2"]), torch.device("cpu"))
        assert {"pgd-eot", "eot-ensemble", "bpda", "adjoint", "transfer", "surrogate"} < {
            row.attack_name for row in bench.rows
        }
        for attack in (row.attack_config for row in bench.rows if row.attack_config is not None):
            facts = attack.facts(True)
            assert "rand" not in attack.label or (attack.kind, attack.version, facts["iterations"], facts["eot"]) == (
                "autoattack",
                "rand",
                100,
                20,
            ), attack.label


def test_sweeps_of_the_reference_are_of_at_most_ten_evaluations():
    points = [*load_sweep("cifar10/sweep_t_star").points, *load_compare("cifar10/compare_solvers").points]
    assert len(points) == 11
    for point in points:
        assert point.settings.data.images == 32 and getattr(point.settings.purifier, "steps", 1) <= 10


def test_without_robustbenchs_weights_its_reference_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("PURIFY_MODELS", str(tmp_path))
    monkeypatch.setenv("PURIFY_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match="purify models fetch robustbench:cifar10/Linf/Standard") as raised:
        setup.load(config.load(BenchConfig, "cifar10/reference_wrn-28-10"), torch.device("cpu"), 1)
    assert "purify models fetch cifar10-binary" in str(raised.value)


def test_the_large_network_is_one_of_ten_to_twenty_million_parameters():
    settings = config.load(TrainConfig, "cifar10/train_score")
    with torch.device("meta"):
        network = networks.build(settings.architecture, settings.network)
    assert 10e6 <= sum(parameter.numel() for parameter in network.parameters()) <= 20e6 and settings.times.t_max == 1.0


def test_the_page_has_the_numbers_of_the_summaries():
    page = PAGE.read_text()
    tables = [markdown.runs_table([read_summary(RESULTS / "reference_32")])]
    tables += [markdown.points_table(read_points(RESULTS / folder)) for folder in ("sweep_t_star", "compare_solvers")]
    for line in "\n".join(tables).splitlines():
        assert not line.startswith("|") or line in page, line


@needs_data
def test_the_card_is_of_the_packaged_weights(test_images):
    card = json.loads((RESULTS.parent / "cards" / "cifar10-small" / "card.json").read_text())
    model = load_score_model("cifar10-small")
    assert (
        card["weights"] == fingerprint_model(model, json.dumps(settings_of(model)))
        and card["provenance"] == model.metadata
    )
    assert card["file_bytes"] == packaged_score_models()["cifar10-small"].stat().st_size
    text = (RESULTS.parent / "cards" / "cifar10-small" / "README.md").read_text()
    assert card["notes"] and all(f"- {note}" in text for note in card["notes"])
    rows = {row["t"]: row for row in card["denoising"]}
    for t, error in denoising_errors(model, test_images, own_times(model, (0.1,))).items():
        assert rows[t]["mse"] == pytest.approx(error, rel=1e-4)
        assert rows[t]["ratio"] == pytest.approx(error / 0.0152, abs=0.01)  # another fit's error on these images
