"""`purify train`: configuration, data, checkpoints and pictures around `purify.training`."""

import json
import math
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from benchmarks import classifiers, datasets
from benchmarks.config import Section
from benchmarks.runs import RunError, environment, progress_bar
from purify import networks, schedules, training, zoo
from purify.noise import Stage, noise_keys, standard_normal
from purify.score import Prediction, ScoreModel

CHECKPOINT = "checkpoint.pt"
QUALITY_TIMES = (0.05, 0.1, 0.15, 0.2, 0.3)


class DataConfig(Section):
    """`train` and `test` are data set names, `root` the folder of their files."""

    train: str
    test: str
    root: str | None = None


class TimesConfig(Section):
    """See `purify.training.TimeSampling`."""

    t_min: float = 1e-5
    t_max: float = 1.0
    focus: float = 0.3
    focus_share: float = 0.0


class AugmentationConfig(Section):
    """Mirroring; for classifiers also shifts by up to so many pixels, and label smoothing of the loss."""

    shift: int = Field(0, ge=0)
    flip: bool = False
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class OptimisationConfig(Section):
    """See `purify.training.TrainingSettings`."""

    steps: int = Field(gt=0)
    batch_size: int = Field(128, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(200, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 0


class TrainConfig(Section):
    """A training run: of a score network or of a classifier."""

    task: Literal["score", "classifier"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataConfig
    architecture: str
    network: dict[str, Any]
    training: OptimisationConfig
    schedule: dict[str, Any] = {"name": "LinearVP"}
    prediction: Prediction = "v"
    times: TimesConfig = TimesConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    checkpoint_minutes: float = Field(3.0, gt=0)

    @model_validator(mode="after")
    def _score_networks_see_no_shifts(self) -> "TrainConfig":
        if self.task == "score" and (self.augmentation.shift or self.augmentation.label_smoothing):
            raise ValueError("augmentation.shift and augmentation.label_smoothing are for task: classifier")
        return self


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
        model, loss = _build(settings)
        self.train_set, self.test_set = (datasets.load(name, settings.data.root) for name in (settings.data.train, settings.data.test))
        images, labels = self.train_set.images[:].to(device), self.train_set.labels.to(device)
        self.trainer = training.Trainer(model.to(device), loss, images, labels, training.TrainingSettings(**settings.training.model_dump()))

    def run(self, out: Path, resume: bool, say: Callable[[str], None]) -> dict[str, Any]:
        """Trains in the folder `out`, or goes on there; returns the measured quality.

        Written to `out`: log.jsonl (a line every few seconds), checkpoint.pt (every `checkpoint_minutes`, and on Ctrl-C or SIGTERM), and at
        the end NAME.score.safetensors or NAME.classifier.safetensors with its provenance, and pictures.

        Raises:
            RunError: no whole checkpoint to resume from.
            FloatingPointError: the loss became NaN or infinite; the last checkpoint is from before.
            KeyboardInterrupt: after the checkpoint was written.
        """
        seconds = self._restore(out / CHECKPOINT, say) if resume else 0.0
        seconds = self._train(out, seconds, say)
        settings, average = self.settings, self.trainer.average
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
        average.metadata = provenance
        average.image_shape = tuple(self.train_set.images.shape[1:])
        zoo.save_score_model(out / f"{settings.name}.score.safetensors", average, settings.architecture, settings.network)

        from benchmarks.figures import save_denoising_picture, save_sample_picture  # matplotlib is slow to import

        save_denoising_picture(average, datasets.as_floats(self.test_set.images[:8]), QUALITY_TIMES, out / "denoising.png")
        save_sample_picture(average, out / "samples.png")
        return quality

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
                raise FloatingPointError(f"the loss is {mean} at step {step:,}; the last checkpoint is {out / CHECKPOINT}")
            rate = len(losses) * settings.training.batch_size / (now - last_log)
            losses.clear()
            with open(out / "log.jsonl", "a") as file:
                file.write(json.dumps({"step": step, "loss": mean, "images_per_second": rate, "learning_rate": trainer.learning_rate(step)}) + "\n")
            update(step, f"loss {mean:.4f}, {rate:,.0f} images/s")

        with progress_bar(f"training {settings.name}", total) as update, _stop_requests() as stopping:

            def after_step(step: int, loss: Tensor) -> bool:
                nonlocal last_log, last_save
                losses.append(loss)
                now = time.monotonic()
                due = now - last_save > 60 * settings.checkpoint_minutes or stopping() or step == total
                if due or now - last_log > 10:  # before every checkpoint, so that none holds the weights of a diverged run
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


def _build(settings: TrainConfig) -> tuple[nn.Module, training.Loss]:
    torch.manual_seed(settings.training.seed)  # initial weights are drawn from the global generator by torch's own constructors
    if settings.task == "classifier":
        return classifiers.build(settings.architecture, settings.network), training.classification(**settings.augmentation.model_dump())
    network = networks.build(settings.architecture, settings.network)
    schedule = schedules.from_description(settings.schedule)
    model = ScoreModel(network, schedule, settings.prediction, t_max=settings.times.t_max)
    return model, training.denoising_score_matching(training.TimeSampling(**settings.times.model_dump()), settings.augmentation.flip)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM came: a step is never torn in the middle."""
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        asked = True

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@torch.no_grad()
def _measure(settings: TrainConfig, model: nn.Module, test_set: datasets.Dataset) -> dict[str, Any]:
    """A classifier's test accuracy, or the denoising error E |E[x0|x_t] - x0|^2 per pixel in [-1, 1], on the first 1,000 test images."""
    device = next(model.parameters()).device
    if settings.task == "classifier":
        right = 0
        for rows in torch.arange(len(test_set)).split(500):
            right += int((model(datasets.as_floats(test_set.images[rows]).to(device)).argmax(1).cpu() == test_set.labels[rows]).sum())
        return {"test_accuracy": right / len(test_set), "test_images": len(test_set)}
    count = min(1000, len(test_set))
    x0 = training.to_network_range(test_set.images[:count])
    noise = standard_normal(noise_keys(0, torch.arange(count), 0), Stage.FORWARD, 0, tuple(x0.shape[1:]))
    errors = {}
    for t in (t for t in QUALITY_TIMES if t <= settings.times.t_max):
        total = 0.0
        for clean, n in zip(x0.split(250), noise.split(250), strict=True):
            clean, n = clean.to(device), n.to(device)
            total += float((model.denoised(model.diffuse(clean, n, t), t) - clean).square().sum())
        errors[str(t)] = round(total / x0.numel(), 6)
    return {"denoising_mse": errors, "test_images": count}
