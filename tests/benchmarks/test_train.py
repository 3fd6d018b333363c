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
from purify import load_score_model

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
    assert (out / "samples.png").stat().st_size > 5000 and (out / "denoising.png").stat().st_size > 5000
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 8 and last["loss"] > 0

    # The stored quality is the error of the stored weights.
    x0 = datasets.load("fashion-mnist-embedded").images.float() / 127.5 - 1
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    error = (model.denoised(model.diffuse(x0, noise, 0.2), 0.2) - x0).square().mean().item()
    assert error == pytest.approx(quality["denoising_mse"]["0.2"], rel=0.02)


def test_classifier(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(monkeypatch, write(tmp_path / "c.yaml", CLASSIFIER), "--out", out) == 0
    quality = json.loads(capsys.readouterr().out)
    model, data = load_classifier(out / "tiny.classifier.safetensors"), datasets.load("fashion-mnist-embedded")
    accuracy = (model(datasets.as_floats(data.images)).argmax(1) == data.labels).double().mean().item()
    assert accuracy == pytest.approx(quality["test_accuracy"], abs=0.01)  # half precision may move a borderline image
    assert accuracy > 0.4


def test_a_terminated_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    """SIGTERM in the middle of the training, then --resume, against a run that was left alone."""
    config = write(tmp_path / "c.yaml", CLASSIFIER | {"training": CLASSIFIER["training"] | {"steps": 150, "precision": "float32"}, "checkpoint_minutes": 1e-4})
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
            "unknown architecture 'unet'; known: ddpm, edm/EDMPrecond, edm/VEPrecond, edm/VPPrecond, guided_diffusion/unet, score_sde/ncsnpp, small_unet",
        ),
        ({"network": {"width": 3}}, "does not take this configuration"),
        ({"schedule": {"name": "cosine"}}, "unknown schedule 'cosine'"),
        ({"trainig": {}}, "unknown key 'trainig'; did you mean 'training'?"),
        ({"data": {"train": "fashion-mnist-train", "test": "fashion-mnist-test", "root": "/nowhere"}}, "apt install dataset-fashion-mnist"),
        ({"name": "../x"}, "name: String should match pattern"),
        ({"times": {"focus": 0.0}}, "need 0 < t_min < focus"),
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
    config = write(tmp_path / "c.yaml", SCORE | {"training": SCORE["training"] | {"learning_rate": 1e30, "gradient_clip": 1e30}})
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
        (source / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + data.labels.byte().numpy().tobytes()))
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
