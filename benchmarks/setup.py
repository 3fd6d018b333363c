"""What a configuration names, loaded and checked to fit together, before any work starts."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import classifiers, datasets
from benchmarks.bench_config import BenchConfig
from benchmarks.config import ConfigError
from benchmarks.runs import fingerprint, fingerprint_model
from purify import DefendedClassifier, DiffPure, Resized, ScoreModel
from purify.gradients import GradientMode
from purify.zoo import settings_of, warn_if_implausible


@dataclass(frozen=True)
class Setup:
    """Images, models and their fingerprints.

    Attributes:
        settings: the configuration.
        device: where everything is.
        x: (n, c, h, w) float32 in [0, 1]; `y` (n,) int64; `image_ids` (n,) positions in the data set, on the CPU; `classes` their names.
        classifier: images in [0, 1] -> logits.
        score: the score model.
        weights: SHA-256 of each model, weights and settings.
    """

    settings: BenchConfig
    device: torch.device
    x: Tensor
    y: Tensor
    image_ids: Tensor
    classes: tuple[str, ...]
    classifier: nn.Module
    score: ScoreModel
    weights: dict[str, str]

    def fingerprint_data(self) -> str:
        """SHA-256 of images, labels and positions: a resumed run must see the same ones, wherever their files lie."""
        return fingerprint(*(tensor.cpu().contiguous().numpy().tobytes() for tensor in (self.x, self.y, self.image_ids)))

    def defended(self, gradient: GradientMode | None = None) -> DefendedClassifier:
        """The configured defence, its purifier in another gradient mode where one is given."""
        arguments = self.settings.purifier.model_dump(exclude={"scheme", "size"})
        if gradient is not None:
            arguments["gradient"] = gradient
        purifier: nn.Module = DiffPure(self.score, **arguments, seed=self.settings.seed)
        if self.settings.purifier.size is not None:
            purifier = Resized(purifier, self.settings.purifier.size)
        return DefendedClassifier(purifier, self.classifier)


def load(settings: BenchConfig, device: torch.device, images: int, asked_by: str = "data.images") -> Setup:
    """The first `images` images of the configuration and its models; `asked_by` is the key that asks for so many.

    Raises:
        ConfigError, CheckpointError, DatasetError, ValueError: anything that cannot work.
    """
    data, classifier, score = _load_all(
        lambda: datasets.load(settings.data.name, settings.data.root),
        settings.classifier.load,
        settings.score.load,
    )
    first = settings.data.first
    if first + images > len(data):
        raise ConfigError(f"{asked_by}={images} from data.first={first}: {settings.data.name!r} has {len(data)} images")
    order = torch.arange(len(data)) if settings.data.subset_seed is None else datasets.subset(len(data), settings.data.subset_seed)
    positions = order[first : first + images]
    x = datasets.as_floats(data.images[positions])
    channels = data.images.shape[1]
    if score.image_shape is not None and score.image_shape[0] != channels:
        raise ConfigError(f"score={settings.score.name!r} takes images of {score.image_shape[0]} channels, data.name={settings.data.name!r} has {channels}")
    setup = Setup(
        settings,
        device,
        x.to(device),
        data.labels[positions].to(device),
        positions,
        data.classes,
        classifier.to(device),
        score.to(device),
        {"classifier": fingerprint_model(classifier), "score": fingerprint_model(score, json.dumps(settings_of(score)))},
    )
    _check_fit(setup)
    few = setup.x[:3] if settings.purifier.size is None else F.interpolate(setup.x[:3], settings.purifier.size, mode="bilinear")
    warn_if_implausible(score, f"score={settings.score.name!r}", few)
    return setup


def _load_all(*parts: Callable[[], Any]) -> list[Any]:
    """What each part gives; where some are missing, one error says all that is missing, so that a user fetches it in one go."""
    found, problems = [], []
    for part in parts:
        try:
            found.append(part())
        except ValueError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError("\n".join(map(str, problems)))
    return found


@torch.no_grad()
def _check_fit(setup: Setup) -> None:
    """One image through both models: sizes and classes that do not fit should not wait for their turn."""
    for name, model in (("classifier", setup.classifier), ("the defended classifier", setup.defended())):
        try:
            classes = classifiers.check_logits(model, setup.x[:1]).shape[1]
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"{name} does not take images of shape {tuple(setup.x.shape[1:])}: {error}") from error
        if classes <= int(setup.y.max()):
            raise ConfigError(f"{name} has {classes} classes, the labels go up to {int(setup.y.max())}")
        named = not setup.classes[0].isdigit()  # else the data set does not say how many classes there are beyond its own labels
        if named and classes != len(setup.classes):
            raise ConfigError(f"{name} has {classes} classes, data.name={setup.settings.data.name!r} has {len(setup.classes)}: it is made for other data")
