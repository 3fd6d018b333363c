"""`purify train` as a user runs it, and small configurations of a score network and of a classifier."""

import command_line
import yaml

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
    return command_line.run(monkeypatch, "train", *arguments)


def write(path, values):
    path.write_text(yaml.safe_dump(values))
    return path
