import functools
import json

import pytest
import torch

from benchmarks import cli, datasets
from benchmarks.config.sections import ConfigError
from benchmarks.datasets import Dataset
from benchmarks.experiments.card import Card
from benchmarks.reports import card_figures
from purify import ScoreModel, load_score_model, networks, save_score_model, schedules
from purify.zoo import packaged_score_models

EMBEDDED = "fashion-mnist-embedded"


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["purify", "models", "card", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def small(t_max=1.0, metadata=None):
    torch.manual_seed(0)
    network = networks.build(
        "small_unet", {"channels": 1, "base_channels": 8, "multipliers": [1], "blocks": 1, "attention": False}
    )
    return ScoreModel(network, schedules.LinearVP(), "v", image_shape=(1, 28, 28), t_max=t_max, metadata=metadata)


def card_of(model, train=None):
    data = datasets.load(EMBEDDED)
    return Card("small", model, data, data if train else None, EMBEDDED, EMBEDDED if train else None)


def test_the_card_of_a_packaged_network(tmp_path, monkeypatch):
    monkeypatch.setattr(card_figures, "save_samples", functools.partial(card_figures.save_samples, rows=2, steps=5))
    assert (
        run(
            monkeypatch,
            "fashion-mnist",
            "--test",
            EMBEDDED,
            "--train",
            EMBEDDED,
            "--note",
            "For tests.",
            "--out",
            tmp_path / "card",
        )
        == 0
    )
    numbers = json.loads((tmp_path / "card" / "card.json").read_text())
    stored = load_score_model("fashion-mnist").metadata
    rows = {row["t"]: row for row in numbers["denoising"]}
    # the same images; weights in half precision
    assert rows[0.1]["mse"] == pytest.approx(stored["quality"]["denoising_mse"]["0.1"], rel=2e-3)
    assert (
        rows[0.1]["ratio"] == pytest.approx(rows[0.1]["mse"] / rows[0.1]["linear_mse"], abs=1e-3)
        and rows[0.1]["ratio"] < 0.8
    )
    assert numbers["file_bytes"] == packaged_score_models()["fashion-mnist"].stat().st_size
    text = (tmp_path / "card" / "README.md").read_text()
    assert f"{stored['steps']:,} steps" in text and "| 0.1 | 0.340 |" in text and "samples.png" in text
    assert numbers["notes"] == ["For tests."] and "- For tests." in text and "16 bits a number" in text
    assert "fitted to the 1,000 images" in text and "few for so many pixels" in text
    for picture in ("denoising.png", "denoised.png", "purified.png", "samples.png"):
        assert (tmp_path / "card" / picture).stat().st_size > 5000


def test_a_network_of_small_noise_levels_makes_no_samples(tmp_path):
    numbers = card_of(small(t_max=0.3)).write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert (
        not (tmp_path / "samples.png").exists() and "samples.png" not in text and "trained up to its time 0.3" in text
    )
    assert max(row.t for row in numbers.denoising) == 0.3 and "ratio" not in numbers.denoising[0].as_json()
    assert "Nothing is known of its training" in text


def test_every_stage_of_the_training_and_its_notes_are_told(tmp_path):
    def stage(steps, note, **more):
        config = {"training": {"batch_size": 64}, "notes": [note], "architecture": "small_unet", "network": {}}
        return {
            "config": config,
            "steps": steps,
            "seed": 3,
            "hours": 0.5,
            "data": "set",
            "environment": {"device": "cpu"},
            **more,
        }

    card_of(small(0.2, stage(222, "second note", init=stage(1111, "first note")))).write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert (
        text.index("1,111 steps of 64 images, seed 3, 0.5 hours")
        < text.index("222 steps")
        < text.index("first note")
        < text.index("second note")
    )


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"source": "somewhere"}, "- source: somewhere"),
        ({"config": "c.yaml"}, "- config: c.yaml"),
        ({"config": {"lr": 1}}, "- config: {'lr': 1}"),
        ({"config": {"architecture": "a", "network": {}}, "steps": 3}, "- steps: 3"),
        ({"init": "base.pt"}, "- init: base.pt"),
    ],
)
def test_an_origin_that_is_not_ours_is_told_as_it_is(metadata, told, tmp_path, monkeypatch):
    monkeypatch.setattr(Card, "_draw", lambda *_: None)
    card_of(small(0.05, metadata)).write(tmp_path)
    assert told in (tmp_path / "README.md").read_text()


def test_a_start_from_weights_of_unknown_origin_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Card, "_draw", lambda *_: None)
    config = {
        "training": {"batch_size": 64},
        "init": "foreign.safetensors",
        "architecture": "small_unet",
        "network": {},
    }
    card_of(small(0.05, {"config": config, "steps": 5, "seed": 0, "hours": 0.1, "data": "set", "init": {}})).write(
        tmp_path
    )
    assert "init: foreign.safetensors" in (tmp_path / "README.md").read_text()


def test_numbers_are_kept_where_pictures_fail(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(card_figures, "save_denoising_curve", full_disk)
    with pytest.raises(OSError, match="no space"):
        card_of(small(0.05)).write(tmp_path)
    assert json.loads((tmp_path / "card.json").read_text())["denoising"]


def test_a_class_is_chosen_on_the_command_line(tmp_path, monkeypatch, capsys):
    class ByClass(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.zeros(3))

        def forward(self, x, labels, classes):
            return x * self.gain[classes].reshape(-1, 1, 1, 1)

    model = ScoreModel(ByClass(), schedules.LinearVP(), "v", image_shape=(1, 28, 28), t_max=0.05, classes=3)
    monkeypatch.setattr("purify.zoo.load_score_model", lambda name: model)
    monkeypatch.setattr("purify.zoo.find_score_model", lambda name: None)
    assert run(monkeypatch, "by-class", "--test", EMBEDDED, "--out", tmp_path / "a") == 2
    assert "class-conditional" in capsys.readouterr().err
    assert run(monkeypatch, "by-class", "--test", EMBEDDED, "--class-label", 3, "--out", tmp_path / "a") == 2
    assert run(monkeypatch, "by-class", "--test", EMBEDDED, "--class-label", 2, "--out", tmp_path / "a") == 0
    assert json.loads((tmp_path / "a" / "card.json").read_text())["settings"]["class_label"] == 2


def test_data_that_does_not_fit(tmp_path, monkeypatch, capsys):
    colour = Dataset(torch.zeros(4, 3, 28, 28, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ("all",))
    with pytest.raises(
        ConfigError, match=r"test data 'colour' does not fit small: x must be images of shape \(b, 1, h, w\)"
    ):
        Card("small", small(), colour, None, "colour")
    grey = Dataset(torch.zeros(4, 1, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ("all",))
    with pytest.raises(
        ConfigError, match=r"training data 'grey' has images of shape \(1, 32, 32\), the test data \(1, 28, 28\)"
    ):
        Card("small", small(), datasets.load(EMBEDDED), grey, EMBEDDED, "grey")
    file = tmp_path / "x.score.safetensors"
    save_score_model(
        file,
        small(),
        "small_unet",
        {"channels": 1, "base_channels": 8, "multipliers": [1], "blocks": 1, "attention": False},
    )
    assert run(monkeypatch, file, "--test", "fashion-mnist-embeded", "--out", tmp_path / "card") == 2
    assert "did you mean 'fashion-mnist-embedded'" in capsys.readouterr().err
    assert not (tmp_path / "card").exists()
