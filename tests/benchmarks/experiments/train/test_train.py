"""Networks that are trained: their files, their measured quality, and the configurations that are refused."""

import json

import pytest
import torch
from train_command import CLASSIFIER, SCORE, run, write

from benchmarks import config as configs
from benchmarks import datasets, load_classifier
from benchmarks.experiments.train import TrainConfig, Training, _measure
from purify import load_score_model, schedules
from purify.zoo import save_score_model


def test_score_network(tmp_path, monkeypatch, capsys):
    config, out = write(tmp_path / "score.yaml", SCORE), tmp_path / "out"
    assert run(monkeypatch, config, "--out", out) == 0
    quality = json.loads(capsys.readouterr().out)
    model = load_score_model(out / "tiny.score.safetensors", check=False)
    assert model.metadata["quality"] == quality
    assert model.metadata["config"]["network"] == SCORE["network"] and model.metadata["images_seen"] == 128
    assert model.image_shape == (1, 28, 28)
    assert all(
        (out / "card" / name).stat().st_size > 5000
        for name in ("samples.png", "denoised.png", "purified.png", "denoising.png")
    )
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 8 and last["loss"] > 0

    # The stored quality is the error of the stored weights.
    x0 = datasets.load("fashion-mnist-embedded").images.float() / 127.5 - 1
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    error = (model.denoised(model.diffuse(x0, noise, 0.2), 0.2) - x0).square().mean().item()
    assert error == pytest.approx(quality["denoising_mse"]["0.2"], rel=0.02)


EDM = {
    "schedule": {"name": "EDM"},
    "prediction": "edm",
    "model": {"sigma_data": 0.7},
    "times": {"distribution": "lognormal", "t_min": 0.002, "t_max": 80.0},
    "objective": {"weighting": "edm"},
}


def test_score_network_in_edms_way(tmp_path, monkeypatch, capsys):
    """Another process, parametrisation, noise sampling and weighting: all of it is in the file, and measured at the
    noise levels of the VP times.
    """
    out = tmp_path / "out"
    assert run(monkeypatch, write(tmp_path / "c.yaml", SCORE | EDM), "--out", out) == 0
    quality = json.loads(capsys.readouterr().out)
    model = load_score_model(out / "tiny.score.safetensors", check=False)
    assert (model.schedule, model.prediction, model.sigma_data, model.t_max) == (schedules.EDM(), "edm", 0.7, 80.0)
    assert all(
        (out / "card" / name).stat().st_size > 5000
        for name in ("samples.png", "denoised.png", "purified.png", "denoising.png")
    )
    loss = json.loads((out / "log.jsonl").read_text().splitlines()[-1])["loss"]
    assert 0.5 < loss < 2  # about 1 before anything is learned
    x0 = datasets.load("fashion-mnist-embedded").images.float() / 127.5 - 1
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    vp = schedules.LinearVP()
    sigma = vp.sigma(0.2) / vp.alpha(0.2)
    error = (model.denoised(x0 + sigma * noise, sigma) - x0).square().mean().item()
    assert list(quality["denoising_mse"]) == ["0.05", "0.1", "0.15", "0.2", "0.3"]
    assert error == pytest.approx(quality["denoising_mse"]["0.2"], rel=0.02)


def prepared(values):
    return Training(configs.validate(TrainConfig, values), torch.device("cpu"))


def test_the_measured_error_is_in_pixels_of_minus_one_to_one():
    """With images and sigma_data three times as large it is the same, for an untrained network: its F is zero, and
    c_skip has no unit.
    """
    errors = []
    for high in (1.0, 3.0):
        training = prepared(SCORE | EDM | {"model": {"value_range": [-high, high], "sigma_data": 0.7 * high}})
        errors.append(_measure(training.settings, training.trainer.model, training.test_set)["denoising_mse"])
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)


def test_adversarial_training_starts_from_trained_weights(tmp_path, monkeypatch, capsys):
    """ADDT from a file: a step at no learning rate leaves its weights, up to the half precision of the file; steps move
    them.
    """
    start, file = prepared(SCORE).trainer, tmp_path / "start.score.safetensors"
    start.run()
    start.average.metadata = {"steps": 8}
    save_score_model(file, start.average, SCORE["architecture"], SCORE["network"])
    objective = {"addt": {"classifier": {"name": "fashion-mnist"}, "rounds": 1}}
    again = SCORE | {"init": str(file), "objective": objective, "notes": ["trained twice"]}
    still = prepared(
        again | {"training": SCORE["training"] | {"steps": 1, "learning_rate": 1e-12, "ema_decay": 0.0}}
    ).trainer
    still.run()
    for ours, theirs in zip(still.average.parameters(), start.average.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    moved, before = tmp_path / "moved", torch.cat([p.detach().flatten() for p in start.average.parameters()])
    assert run(monkeypatch, write(tmp_path / "c.yaml", again), "--out", moved) == 0
    model = load_score_model(moved / "tiny.score.safetensors", check=False)
    distance = (torch.cat([p.flatten() for p in model.parameters()]) - before).norm() / before.norm()
    assert 1e-3 < distance < 0.5
    assert model.metadata["config"]["objective"]["addt"]["classifier"]["name"] == "fashion-mnist"
    assert model.metadata["init"] == {"steps": 8} and "- trained twice" in (moved / "card" / "README.md").read_text()


def test_a_classifier_starts_from_trained_weights():
    packaged = load_classifier("fashion-mnist")
    change = {
        "init": "fashion-mnist",
        "network": {"channels": 1, "classes": 10, "widths": [32, 64, 128], "mean": 0.2860, "std": 0.3530},
    }
    trained = prepared(CLASSIFIER | change).trainer.model
    for (name, ours), theirs in zip(trained.state_dict().items(), packaged.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    "name",
    [
        "cifar10/train_score_small",
        "fashion-mnist/train_score",
        "fashion-mnist/train_score_edm",
        "fashion-mnist/train_score_addt",
    ],
)
def test_presets_can_be_built(name):
    small = "data={train: fashion-mnist-embedded, test: fashion-mnist-embedded}"
    settings = configs.load(TrainConfig, name, [small, *(["network.channels=1"] if "cifar10" in name else [])])
    trainer = Training(settings, torch.device("cpu")).trainer
    assert trainer.model.prediction == settings.prediction and trainer.model.t_max == settings.times.t_max


def test_classifier(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(monkeypatch, write(tmp_path / "c.yaml", CLASSIFIER), "--out", out) == 0
    quality = json.loads(capsys.readouterr().out)
    model, data = load_classifier(out / "tiny.classifier.safetensors"), datasets.load("fashion-mnist-embedded")
    accuracy = (model(datasets.as_floats(data.images)).argmax(1) == data.labels).double().mean().item()
    assert accuracy == pytest.approx(quality["test_accuracy"], abs=0.01)  # half precision may move a borderline image
    assert accuracy > 0.3  # chance: 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": "unet"},
            (
                "unknown architecture 'unet'; known: ddpm, edm/EDMPrecond, edm/VEPrecond, edm/VPPrecond,"
                " guided_diffusion/unet, score_sde/ncsnpp, small_unet"
            ),
        ),
        ({"network": {"width": 3}}, "does not take this configuration"),
        ({"schedule": {"name": "cosine"}}, "unknown schedule 'cosine'"),
        ({"trainig": {}}, "unknown key 'trainig'; did you mean 'training'?"),
        (
            {"data": {"train": "fashion-mnist-train", "test": "fashion-mnist-test", "root": "/nowhere"}},
            "apt install dataset-fashion-mnist",
        ),
        ({"name": "../x"}, "name: String should match pattern"),
        ({"times": {"focus": 0.0}}, "need 0 < t_min < focus"),
        ({"times": {"t_max": 2.0}}, "times.t_max=2 lies beyond the end of LinearVP"),
        (
            {"times": {"distribution": "log-snr", "focus_share": 0.5}},
            "focus and focus_share go with distribution: uniform, not with log-snr",
        ),
        ({"schedule": {"name": "EDM"}}, "times.t_max is missing: the times of EDM(sigma_max=80.0) run to 80"),
        (
            {"schedule": {"name": "EDM", "beta_min": 0.1}},
            "schedule: EDM.__init__() got an unexpected keyword argument 'beta_min'",
        ),
        ({"prediction": "edm", "model": {"time_scale": 1000.0}}, 'prediction="edm" has its own labels'),
        (
            {"objective": {"weighting": "p2"}},
            "objective.weighting: Input should be 'simple', 'likelihood', 'edm', 'snr' or 'min-snr'",
        ),
        (
            {"objective": {"addt": {"classifier": {"name": "fashion-mnist"}, "rounds": 0}}},
            "rounds must be at least 1, got 0",
        ),
        ({"objective": {"addt": {"classifier": {"name": "mnist"}}}}, "no classifier 'mnist'"),
        (
            {"objective": {"addt": {"classifier": {"name": "pyautoattack:resnet18", "weights": "random"}}}},
            "does not take images of fashion-mnist-embedded",
        ),
        ({"init": "nothing"}, "no score model 'nothing'"),
        ({"init": "fashion-mnist"}, "init: fashion-mnist: the weights do not fit the small_unet of this configuration"),
        (
            {"init": "fashion-mnist", "prediction": "noise"},
            "init: fashion-mnist was trained with prediction='v' and not 'noise': give this run the same",
        ),
        (
            {"task": "classifier", "objective": {"weighting": "edm"}},
            "objective: for task: score, a classifier is trained without noise",
        ),
        ({"task": "classifier", "times": {"t_max": 0.5}, "prediction": "noise"}, "prediction, times: for task: score"),
    ],
)
def test_bad_configurations(tmp_path, monkeypatch, capsys, change, message):
    assert run(monkeypatch, write(tmp_path / "c.yaml", SCORE | change), "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
