"""What is kept of a training that was terminated or diverged, or whose disk is full, and what goes on from there."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from train_command import CLASSIFIER, SCORE, run, write

from benchmarks import config as configs
from benchmarks.experiments.train import TrainConfig


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
