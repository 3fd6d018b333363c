import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from torchvision.datasets.mnist import read_image_file

from benchmarks import cli, datasets, load_classifier
from benchmarks import config as configs
from benchmarks.experiments.train import TrainConfig, Training, _measure
from benchmarks.reports import card_figures
from purify import load_score_model, schedules
from purify.zoo import save_score_model

SCORE = {
    "task": "score",
    "name": "tiny",
    "data": {"train": "fashion-mnist-embedded", "test": "fashion-mnist-embedded"},
    "architecture": "small_unet",
    "network": {"channels": 1, "base_channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": False},
    "training": {"steps": 8, "batch_size": 16, "warmup_steps": 2},
}
CLASSIFIER = SCORE | {
    "task": "classifier",
    "architecture": "small_resnet",
    "network": {"channels": 1, "classes": 10, "widths": [8, 16]},
    "training": {"steps": 40, "batch_size": 50, "learning_rate": 0.01, "ema_decay": 0.8, "warmup_steps": 2},
}


@pytest.fixture(autouse=True)
def quick_samples(monkeypatch):
    """The pictures at the end of a training, with fewer steps."""
    monkeypatch.setattr(card_figures, "save_samples", functools.partial(card_figures.save_samples, steps=10))


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["purify", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def write(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


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


def test_a_run_from_before_there_were_objectives_resumes(tmp_path):
    """`config.yaml` as it was written then, in full, is the configuration of today's defaults."""
    old = yaml.safe_load(OLD_RUN)
    stored = write(tmp_path / "config.yaml", old)
    settings = configs.load(TrainConfig, "cifar10/train_score_small")
    configs.check_same(settings, stored)
    with pytest.raises(configs.ConfigError, match="differs from .* in objective"):
        configs.check_same(configs.load(TrainConfig, "cifar10/train_score_small", ["objective.weighting=snr"]), stored)


OLD_RUN = """
task: score
name: cifar10-small
data: {train: "npz:train_jpeg.npz+npz:train_lossless5085.npz", test: "npz:test_first1000.npz", root: null}
architecture: small_unet
network: {channels: 3, base_channels: 64, multipliers: [1, 2], blocks: 2, stem: 2, attention: true}
training: {steps: 14000, batch_size: 128, learning_rate: 0.0012, warmup_steps: 200, weight_decay: 0.01,
  gradient_clip: 1.0, ema_decay: 0.9995,
  precision: bfloat16, seed: 0}
schedule: {name: LinearVP, beta_min: 0.1, beta_max: 20.0}
prediction: v
times: {t_min: 1.0e-05, t_max: 0.3, focus: 0.3, focus_share: 0.0}
augmentation: {shift: 0, flip: true, label_smoothing: 0.0}
checkpoint_minutes: 3.0
"""


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


def test_a_terminated_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    """SIGTERM in the middle of the training, then --resume, against a run that was left alone."""
    config = write(
        tmp_path / "c.yaml",
        CLASSIFIER
        | {
            "training": CLASSIFIER["training"] | {"steps": 150, "precision": "float32"},
            "checkpoint_minutes": 1e-4,
        },
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, "-m", "purify", "train", str(config), "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # the same sums in both
    subprocess.run([*command, str(whole)], check=True, env=environment, capture_output=True)
    process = subprocess.Popen([*command, str(broken)], env=environment, stderr=subprocess.PIPE, text=True)
    while not (broken / "checkpoint.pt").exists():  # the first one comes soon after the first step
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "--resume" in messages
    assert not (broken / "tiny.classifier.safetensors").exists()
    subprocess.run([*command, str(broken), "--resume"], check=True, env=environment, capture_output=True)
    first, second = (torch.load(folder / "checkpoint.pt", weights_only=True)["trainer"] for folder in (whole, broken))
    assert first["step"] == second["step"] == 150
    for name, tensor in first["average"].items():
        assert torch.equal(tensor, second["average"][name]), name


def test_a_full_disk_does_not_stop_the_training(tmp_path, monkeypatch, capsys):
    """The checkpoint cannot be written: said, and gone on with."""
    real, tries = torch.save, []

    def full(state, path):
        tries.append(path)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")
        real(state, path)

    monkeypatch.setattr(torch, "save", full)
    config = write(tmp_path / "c.yaml", SCORE | {"checkpoint_minutes": 1e-4})
    assert run(monkeypatch, config, "--out", tmp_path / "out") == 0
    assert "could not write the checkpoint at step 1, going on: [Errno 28]" in capsys.readouterr().err
    assert torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["trainer"]["step"] == 8


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


def test_resume_needs_a_checkpoint(tmp_path, monkeypatch, capsys):
    config, out = write(tmp_path / "c.yaml", SCORE), tmp_path / "out"
    assert run(monkeypatch, config, "--out", tmp_path, "--resume") == 2
    assert "holds no run" in capsys.readouterr().err
    assert run(monkeypatch, config, "--out", out) == 0
    assert run(monkeypatch, config, "--out", out, "--resume", "--set", "training.learning_rate=0.5") == 2
    assert "the configuration differs" in capsys.readouterr().err
    (out / "checkpoint.pt").write_bytes((out / "checkpoint.pt").read_bytes()[:1000])
    assert run(monkeypatch, config, "--out", out, "--resume") == 2
    assert "checkpoint.pt is not a whole checkpoint" in capsys.readouterr().err


def test_a_diverged_run_stops_and_says_so(tmp_path, monkeypatch, capsys):
    config = write(
        tmp_path / "c.yaml", SCORE | {"training": SCORE["training"] | {"learning_rate": 1e30, "gradient_clip": 1e30}}
    )
    assert run(monkeypatch, config, "--out", tmp_path / "out") == 2
    assert "error: the loss is" in capsys.readouterr().err
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_fashion_mnist_from_a_folder_of_gzipped_files(tmp_path, monkeypatch):
    """The official idx files, gzipped as they are distributed, made here from the embedded images."""
    import gzip

    data = datasets.load("fashion-mnist-embedded")
    source = tmp_path / "source"
    source.mkdir()
    for prefix in ("train", "t10k"):
        header = (2051).to_bytes(4, "big") + (1000).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
        (source / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + data.images.numpy().tobytes()))
        header = (2049).to_bytes(4, "big") + (1000).to_bytes(4, "big")
        (source / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(header + data.labels.byte().numpy().tobytes())
        )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loaded = datasets.load("fashion-mnist-train", str(source))
    assert torch.equal(loaded.images, data.images) and torch.equal(loaded.labels, data.labels)
    raw = next((tmp_path / "cache").rglob("train-images-idx3-ubyte"))
    assert torch.equal(read_image_file(str(raw)), data.images[:, 0])

    torchvision_root = raw.parents[2]
    assert torch.equal(datasets.load("fashion-mnist-test", str(torchvision_root)).images, data.images)


def test_embedded_images_are_the_official_ones():
    """Against Debian's copy of the official files, where it is installed."""
    if not datasets.fashion_mnist.DEBIAN_FOLDER.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    official, embedded = datasets.load("fashion-mnist-test"), datasets.load("fashion-mnist-embedded")
    assert torch.equal(official.images[:1000], embedded.images) and torch.equal(official.labels[:1000], embedded.labels)
