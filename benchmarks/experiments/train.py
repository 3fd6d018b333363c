"""`purify train`: data, checkpoints and pictures around `purify.training`."""

import json
import math
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import classifiers, datasets
from benchmarks.config.sections import ConfigError
from benchmarks.config.train import TrainConfig
from benchmarks.evaluation.denoising import LinearDenoiser, denoising_errors, measured_images, own_times
from benchmarks.evaluation.precision import full_precision
from benchmarks.experiments.card import Card
from benchmarks.experiments.train_parts import initial_model, loss_of
from benchmarks.runs.environment import environment
from benchmarks.runs.folder import RunError
from benchmarks.runs.progress import progress_bar
from benchmarks.runs.schema import TrainingLine
from benchmarks.runs.stopping import stop_requests
from purify import zoo
from purify.score.model import ScoreModel
from purify.training import loop as training

__all__ = ["TrainConfig", "Training"]

CHECKPOINT = "checkpoint.pt"
QUALITY_TIMES = (0.05, 0.1, 0.15, 0.2, 0.3)
"""Noise levels at which a score network is measured, as times of `LinearVP()`."""


class Training:
    """A checked training run, ready to start.

    Args:
        settings: the configuration.
        device: where to train.

    Raises:
        ConfigError, DatasetError, ValueError: anything that cannot work, before any work starts.
    """

    def __init__(self, settings: TrainConfig, device: torch.device):
        self.settings = settings
        self.device = device
        model = initial_model(settings)
        self.train_set, self.test_set = (
            datasets.load(name, settings.data.root) for name in (settings.data.train, settings.data.test)
        )
        shapes = [tuple(found.images.shape[1:]) for found in (self.train_set, self.test_set)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"data.test={settings.data.test!r} has images of shape {shapes[1]}, data.train={settings.data.train!r}"
                f" of {shapes[0]}"
            )
        loss = loss_of(settings, self.train_set, device)
        images, labels = self.train_set.images[:].to(device), self.train_set.labels.to(device)
        self.trainer = training.Trainer(
            model.to(device), loss, images, labels, training.TrainingSettings(**settings.training.model_dump())
        )

    def run(self, out: Path, resume: bool, say: Callable[[str], None]) -> dict[str, Any]:
        """Trains in the folder `out`, or goes on there; returns the measured quality.

        Written to `out`: log.jsonl (a line every few seconds), checkpoint.pt (every `checkpoint_minutes`, and on Ctrl-C
        or SIGTERM), and at the end NAME.score.safetensors or NAME.classifier.safetensors with its provenance, and of a
        score network card/, see `benchmarks.card`.

        Raises:
            RunError: no whole checkpoint to resume from.
            FloatingPointError: the loss became NaN or infinite; the last checkpoint is from before.
            KeyboardInterrupt: after the checkpoint was written.
        """
        seconds = self._restore(out / CHECKPOINT, say) if resume else 0.0
        seconds = self._train(out, seconds, say)
        settings, average = self.settings, self.trainer.average
        with full_precision(self.device):
            quality = _measure(settings, average, self.test_set)
        provenance = {
            "config": settings.model_dump(mode="json"),
            "seed": settings.training.seed,
            "data": settings.data.train,
            "steps": self.trainer.step,
            "images_seen": self.trainer.step * settings.training.batch_size,
            "hours": round(seconds / 3600, 2),
            "quality": quality,
            "environment": environment(self.device),
        }
        if settings.task == "classifier":
            path = out / f"{settings.name}.classifier.safetensors"
            classifiers.save_classifier(path, average, settings.architecture, settings.network, provenance)
            return quality
        assert isinstance(average, ScoreModel)
        average.metadata = average.metadata | provenance
        _, channels, height, width = self.train_set.images.shape
        average.image_shape = (channels, height, width)
        path = out / f"{settings.name}.score.safetensors"
        zoo.save_score_model(path, average, settings.architecture, settings.network)
        self._write_card(zoo.load_score_model(path, check=False).to(self.device), path, say)
        return quality

    def _write_card(self, model: ScoreModel, path: Path, say: Callable[[str], None]) -> None:
        """Of the weights as they were stored, which are safe whatever happens here."""
        data = self.settings.data
        fits = LinearDenoiser.can_fit(self.train_set) and LinearDenoiser.has_plenty(self.train_set)
        folder = path.parent / "card"
        try:
            folder.mkdir(exist_ok=True)
            Card(
                self.settings.name, model, self.test_set, self.train_set if fits else None, data.test, data.train
            ).write(folder, path, say)
        except (OSError, RuntimeError, ValueError) as error:
            say(f"{path} is written, its card is not: {error}; try `purify models card {path} --test {data.test}`")

    def _restore(self, path: Path, say: Callable[[str], None]) -> float:
        """Puts the trainer where the checkpoint left it; returns the seconds spent so far."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.trainer.load_state_dict(state["trainer"])
        except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise RunError(f"--resume: {path} is not a whole checkpoint of this run: {error}") from error
        say(f"resuming at step {self.trainer.step:,} of {self.settings.training.steps:,}")
        return float(state["seconds"])

    def _train(self, out: Path, seconds: float, say: Callable[[str], None]) -> float:
        """Trains to the end with checkpoints; returns the seconds spent, those of earlier runs included."""
        trainer, settings, total = self.trainer, self.settings, self.settings.training.steps
        started = time.monotonic()
        last_log = last_save = started
        losses: list[Tensor] = []

        def save() -> None:
            state = {"trainer": trainer.state_dict(), "seconds": seconds + time.monotonic() - started}
            temporary = out / f"{CHECKPOINT}.partial"
            try:
                torch.save(state, temporary)
                os.replace(temporary, out / CHECKPOINT)
            except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
                temporary.unlink(missing_ok=True)
                say(f"could not write the checkpoint at step {trainer.step:,}, going on: {error}")

        def log(step: int, now: float, update: Callable[[int, str], None]) -> None:
            mean = torch.stack(losses).mean().item()
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"the loss is {mean} at step {step:,}; the last checkpoint is {out / CHECKPOINT}"
                )
            rate = len(losses) * settings.training.batch_size / (now - last_log)
            losses.clear()
            with open(out / "log.jsonl", "a") as file:
                line = TrainingLine(
                    step=step, loss=mean, images_per_second=rate, learning_rate=trainer.learning_rate(step)
                )
                file.write(json.dumps(line.as_json()) + "\n")
            update(step, f"loss {mean:.4f}, {rate:,.0f} images/s")

        with progress_bar(f"training {settings.name}", total) as update, stop_requests() as stopping:

            def after_step(step: int, loss: Tensor) -> bool:
                nonlocal last_log, last_save
                losses.append(loss)
                now = time.monotonic()
                due = now - last_save > 60 * settings.checkpoint_minutes or stopping() or step == total
                # before every checkpoint, so that none holds the weights of a diverged run
                if due or now - last_log > 10:
                    log(step, now, update)
                    last_log = now
                if due:
                    save()
                    last_save = now
                return stopping()

            trainer.run(after_step)
            if stopping() and trainer.step < total:
                say(f"stopped at step {trainer.step:,}; go on with the same command and --out {out} --resume")
                raise KeyboardInterrupt
        return seconds + time.monotonic() - started


@torch.no_grad()
def _measure(settings: TrainConfig, model: nn.Module, test_set: datasets.Dataset) -> dict[str, Any]:
    """A classifier's test accuracy, or a score model's `denoising_errors` at `QUALITY_TIMES`."""
    if settings.task == "score":
        assert isinstance(model, ScoreModel)
        errors = denoising_errors(model, test_set, own_times(model, QUALITY_TIMES))
        return {
            "denoising_mse": {str(t): error for t, error in errors.items()},
            "test_images": measured_images(test_set),
        }
    device, right = next(model.parameters()).device, 0
    for rows in torch.split(torch.arange(len(test_set)), 500):
        right += int(
            (model(datasets.as_floats(test_set.images[rows]).to(device)).argmax(1).cpu() == test_set.labels[rows]).sum()
        )
    return {"test_accuracy": right / len(test_set), "test_images": len(test_set)}
