"""`purify train`: configuration, data, checkpoints and pictures around `purify.training`."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from benchmarks import classifiers, config, datasets
from benchmarks.config import Section
from benchmarks.runs import environment, progress_bar
from purify import networks, schedules, training, zoo
from purify.noise import noise_keys, standard_normal
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
    """For classifiers: shifts by up to so many pixels, mirroring, and label smoothing of the loss."""

    shift: int = Field(2, ge=0)
    flip: bool = True
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
    name: str
    data: DataConfig
    architecture: str
    network: dict[str, Any]
    training: OptimisationConfig
    schedule: dict[str, Any] = {"name": "LinearVP"}
    prediction: Prediction = "v"
    times: TimesConfig = TimesConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    checkpoint_minutes: float = Field(3.0, gt=0)


def train(settings: TrainConfig, config_name: str, out: Path, device: torch.device, resume: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs or resumes a training run in the folder `out`; returns the measured quality.

    Written to `out`: config.yaml, log.jsonl (a line every few seconds), checkpoint.pt (every `checkpoint_minutes`, and on Ctrl-C or
    SIGTERM), and at the end NAME.score.safetensors or NAME.classifier.safetensors with its provenance, and pictures.

    Raises:
        ConfigError, DatasetError, ValueError: before any work starts.
        KeyboardInterrupt: after the checkpoint was written.
    """
    model, loss = _build(settings)
    train_set, test_set = (datasets.load(name, settings.data.root) for name in (settings.data.train, settings.data.test))
    images, labels = train_set.images.to(device), train_set.labels.to(device)
    trainer = training.Trainer(model.to(device), loss, images, labels, training.TrainingSettings(**settings.training.model_dump()))
    seconds = 0.0
    if resume:
        state = torch.load(out / CHECKPOINT, map_location=device, weights_only=True)
        trainer.load_state_dict(state["trainer"])
        seconds = state["seconds"]
        say(f"resuming at step {trainer.step:,} of {settings.training.steps:,}")
    config.dump(settings, out / "config.yaml")
    seconds = _run(trainer, settings, out, seconds, say)

    quality = _measure(settings, trainer.average, test_set)
    provenance = {
        "config": config_name,
        "seed": settings.training.seed,
        "data": settings.data.train,
        "steps": trainer.step,
        "images_seen": trainer.step * settings.training.batch_size,
        "hours": round(seconds / 3600, 2),
        "quality": quality,
        "environment": environment(device),
    }
    _export(settings, trainer.average, out, provenance)
    if settings.task == "score":
        from benchmarks.figures import save_denoising_picture, save_sample_picture  # matplotlib is slow to import

        save_denoising_picture(trainer.average, datasets.as_floats(test_set.images[:8]), QUALITY_TIMES, out / "denoising.png")
        save_sample_picture(trainer.average, out / "samples.png")
    return quality


def _build(settings: TrainConfig) -> tuple[nn.Module, training.Loss]:
    torch.manual_seed(settings.training.seed)  # initial weights are drawn from the global generator by torch's own constructors
    if settings.task == "classifier":
        return classifiers.build(settings.architecture, settings.network), training.classification(**settings.augmentation.model_dump())
    network = networks.build(settings.architecture, settings.network)
    schedule = schedules.from_description(settings.schedule)
    model = ScoreModel(network, schedule, settings.prediction, t_max=settings.times.t_max)
    return model, training.denoising_score_matching(training.TimeSampling(**settings.times.model_dump()))


def _run(trainer: training.Trainer, settings: TrainConfig, out: Path, seconds: float, say: Callable[[str], None]) -> float:
    """Trains to the end with checkpoints; returns the seconds spent, those of earlier runs included."""
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

    total = settings.training.steps
    with progress_bar(f"training {settings.name}", total) as update, _terminated_as_interrupt():

        def after_step(step: int, loss: Tensor) -> bool:
            nonlocal last_log, last_save
            losses.append(loss)
            now = time.monotonic()
            if now - last_log > 10 or step == total:
                mean = torch.stack(losses).mean().item()
                rate = len(losses) * settings.training.batch_size / (now - last_log)
                losses.clear()
                last_log = now
                with open(out / "log.jsonl", "a") as log:
                    log.write(json.dumps({"step": step, "loss": mean, "images_per_second": rate, "learning_rate": trainer.learning_rate(step)}) + "\n")
                update(step, f"loss {mean:.4f}, {rate:,.0f} images/s")
                if not torch.isfinite(torch.tensor(mean)):
                    raise FloatingPointError(f"the loss is {mean} at step {step}; the last checkpoint is {out / CHECKPOINT}")
            if now - last_save > 60 * settings.checkpoint_minutes:
                save()
                last_save = now
            return False

        try:
            trainer.run(after_step)
        except KeyboardInterrupt:
            save()
            say(f"stopped at step {trainer.step:,}; go on with --resume")
            raise
    save()
    return seconds + time.monotonic() - started


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM stops like Ctrl-C, so that a scheduler's kill leaves a checkpoint."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@torch.no_grad()
def _measure(settings: TrainConfig, model: nn.Module, test_set: datasets.Dataset) -> dict[str, Any]:
    """A classifier's test accuracy, or the denoising error E |E[x0|x_t] - x0|^2 per pixel in [-1, 1], on the first 1,000 test images."""
    device = next(model.parameters()).device
    if settings.task == "classifier":
        right = 0
        for images, labels in zip(test_set.images.split(500), test_set.labels.split(500), strict=True):
            right += int((model(datasets.as_floats(images).to(device)).argmax(1).cpu() == labels).sum())
        return {"test_accuracy": right / len(test_set), "test_images": len(test_set)}
    count = min(1000, len(test_set))
    x0 = training.to_network_range(test_set.images[:count])
    noise = standard_normal(noise_keys(0, torch.arange(count), 0), stage=0, step=0, shape=x0.shape[1:])
    errors = {}
    for t in (t for t in QUALITY_TIMES if t <= settings.times.t_max):
        total = 0.0
        for clean, n in zip(x0.split(250), noise.split(250), strict=True):
            clean, n = clean.to(device), n.to(device)
            total += float((model.denoised(model.diffuse(clean, n, t), t) - clean).square().sum())
        errors[str(t)] = round(total / x0.numel(), 6)
    return {"denoising_mse": errors, "test_images": count}


def _export(settings: TrainConfig, model: nn.Module, out: Path, provenance: dict[str, Any]) -> None:
    if settings.task == "classifier":
        path = out / f"{settings.name}.classifier.safetensors"
        classifiers.save_classifier(path, model, settings.architecture, settings.network, provenance)
        return
    model.metadata = provenance
    model.image_shape = tuple(datasets.load(settings.data.train, settings.data.root).images.shape[1:])
    zoo.save_score_model(out / f"{settings.name}.score.safetensors", model, settings.architecture, settings.network)
