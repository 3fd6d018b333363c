"""What a configuration names, loaded and checked to fit together, before any work starts."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import classifiers, datasets
from benchmarks.config.bench import BenchConfig, ClassifierConfig, DataConfig, ScoreConfig
from benchmarks.config.sections import ConfigError
from benchmarks.runs.fingerprints import fingerprint, fingerprint_model
from purify import DefendedClassifier, ScoreModel
from purify.gradients import GradientMode
from purify.zoo import settings_of, warn_if_implausible


@dataclass(frozen=True)
class Parts:
    """Images, models and their fingerprints.

    Attributes:
        device: where everything is.
        x: (n, c, h, w) float32 in [0, 1]; `y` (n,) int64; `image_ids` (n,) positions in the data set, on the CPU;
            `classes` their names.
        classifier: images in [0, 1] -> logits.
        score: the score model, where one is asked for.
        weights: SHA-256 of each model, weights and settings.
    """

    device: torch.device
    x: Tensor
    y: Tensor
    image_ids: Tensor
    classes: tuple[str, ...]
    classifier: nn.Module
    score: ScoreModel | None
    weights: dict[str, str]

    def fingerprint_data(self) -> str:
        """SHA-256 of images, labels and positions: a resumed run must see the same ones, wherever their files lie."""
        return fingerprint(
            *(tensor.cpu().contiguous().numpy().tobytes() for tensor in (self.x, self.y, self.image_ids))
        )


@dataclass(frozen=True)
class Setup(Parts):
    """The parts of one defence, and its configuration."""

    score: ScoreModel
    settings: BenchConfig

    def defended(self, gradient: GradientMode | None = None) -> DefendedClassifier:
        """The configured defence, its purifier in another gradient mode where one is given."""
        config = self.settings.purifier
        return DefendedClassifier(
            config.build(self.score, self.settings.seed, gradient), self.classifier, config.copies, config.average
        )


def load(settings: BenchConfig, device: torch.device, images: int, asked_by: str = "data.images") -> Setup:
    """The first `images` images of the configuration and its models; `asked_by` is the key that asks for so many.

    Raises:
        ConfigError, CheckpointError, DatasetError, ValueError: anything that cannot work.
    """
    parts = load_parts(settings.data, settings.classifier, settings.score, device, images, asked_by)
    setup = Setup(**{field.name: getattr(parts, field.name) for field in fields(parts)}, settings=settings)
    _check_fit(setup)
    few = (
        setup.x[:3]
        if settings.purifier.size is None
        else F.interpolate(setup.x[:3], settings.purifier.size, mode="bilinear")
    )
    warn_if_implausible(setup.score, f"score={settings.score.name!r}", few)
    return setup


def load_parts(
    data: DataConfig,
    classifier: ClassifierConfig,
    score: ScoreConfig | None,
    device: torch.device,
    images: int,
    asked_by: str = "data.images",
) -> Parts:
    """The first `images` images of `data` and the models. Raises as `load`, but for what does not fit together."""
    loaders = [data.load, classifier.load]
    found, classify, network = _load_all(*loaders, (lambda: None) if score is None else score.load)
    if data.first + images > len(found):
        raise ConfigError(f"{asked_by}={images} from data.first={data.first}: {data.name!r} has {len(found)} images")
    order = torch.arange(len(found)) if data.subset_seed is None else datasets.subset(len(found), data.subset_seed)
    positions = order[data.first : data.first + images]
    x, y = datasets.as_floats(found.images[positions]).to(device), found.labels[positions].to(device)
    weights = {"classifier": fingerprint_model(classify)}
    if score is not None:
        channels = found.images.shape[1]
        if network.image_shape is not None and network.image_shape[0] != channels:
            raise ConfigError(
                f"score={score.name!r} takes images of {network.image_shape[0]} channels, data.name={data.name!r} has"
                f" {channels}"
            )
        weights["score"] = fingerprint_model(network, json.dumps(settings_of(network)))
        network = network.to(device)
    return Parts(device, x, y, positions, found.classes, classify.to(device), network, weights)


def _load_all(*parts: Callable[[], Any]) -> list[Any]:
    """What each part gives; where some are missing, one error says all that is missing, so that a user fetches it in
    one go.
    """
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


def _check_fit(setup: Setup) -> None:
    """One image through both models: sizes and classes that do not fit should not wait for their turn."""
    for name, model in (("classifier", setup.classifier), ("the defended classifier", setup.defended())):
        classes = check_classes(name, model, setup.x, setup.y)
        # else the data set does not say how many classes there are beyond its own labels
        named = not setup.classes[0].isdigit()
        if named and classes != len(setup.classes):
            raise ConfigError(
                f"{name} has {classes} classes, data.name={setup.settings.data.name!r} has {len(setup.classes)}: it is"
                " made for other data"
            )


@torch.no_grad()
def check_classes(name: str, model: nn.Module, x: Tensor, y: Tensor) -> int:
    """How many classes a model has, by its answer to the first image. Raises ConfigError for images that it does not
    take, and for labels (n,) that it does not have; `name` is what the message calls it.
    """
    try:
        classes = classifiers.check_logits(model, x[:1]).shape[1]
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{name} does not take images of shape {tuple(x.shape[1:])}: {error}") from error
    if classes <= int(y.max()):
        raise ConfigError(f"{name} has {classes} classes, the labels go up to {int(y.max())}")
    return classes
