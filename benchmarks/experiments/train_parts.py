"""What a training configuration names: the model that is trained, and the loss."""

import torch
from torch import nn

from benchmarks import classifiers, datasets
from benchmarks.config.sections import ConfigError
from benchmarks.config.train import TrainConfig
from purify import networks, schedules, zoo
from purify.score.model import ScoreModel
from purify.training import objectives
from purify.training.adversarial import Perturbation, adversarial_denoising
from purify.zoo import checkpoint


def initial_model(settings: TrainConfig) -> nn.Module:
    """A score model or a classifier, freshly drawn or with the weights of `init`. Raises ConfigError where these do not
    fit.
    """
    # initial weights are drawn from the global generator by torch's own constructors
    torch.manual_seed(settings.training.seed)
    if settings.task == "score":
        model = _score_model(settings)
        if settings.init is not None:
            _start_from(model, settings.init, settings)
        return model
    classifier = classifiers.build(settings.architecture, settings.network)
    if settings.init is not None:
        _load_weights(classifier, classifiers.load_classifier(settings.init), settings)
    return classifier


def loss_of(settings: TrainConfig, train_set: datasets.Dataset, device: torch.device) -> objectives.Loss:
    """What is minimised. Raises ConfigError for a classifier that does not fit the images."""
    if settings.task == "classifier":
        return objectives.classification(**settings.augmentation.model_dump())
    times, flip, weighting, addt = (
        settings.times.build(),
        settings.augmentation.flip,
        settings.objective.weighting,
        settings.objective.addt,
    )
    if addt is None:
        return objectives.denoising_score_matching(times, flip, weighting)
    classifier = addt.classifier.load()
    try:
        logits = classifier(datasets.as_floats(train_set.images[:1]))
    except RuntimeError as error:
        raise ConfigError(
            f"objective.addt.classifier: {addt.classifier.name} does not take images of {settings.data.train}: {error}"
        ) from error
    if logits.shape[1] != len(train_set.classes):
        found = f"{addt.classifier.name} has {logits.shape[1]} classes, {settings.data.train} {len(train_set.classes)}"
        raise ConfigError(f"objective.addt.classifier: {found}; give a classifier of the training images")
    return adversarial_denoising(
        times, classifier.to(device), Perturbation(addt.rounds, addt.strength, addt.largest), flip, weighting
    )


def _score_model(settings: TrainConfig) -> ScoreModel:
    network = networks.build(settings.architecture, settings.network)
    try:
        schedule = schedules.from_description(settings.schedule)
    except TypeError as error:
        raise ConfigError(f"schedule: {error}") from error
    t_max = settings.times.t_max
    if t_max > schedule.t_max:
        raise ConfigError(f"times.t_max={t_max:g} lies beyond the end of {schedule}, {schedule.t_max:g}")
    if schedule.t_max > 1 and "t_max" not in settings.times.model_fields_set:
        raise ConfigError(
            f"times.t_max is missing: the times of {schedule} run to {schedule.t_max:g}, say how far to train"
        )
    return ScoreModel(network, schedule, settings.prediction, t_max=t_max, **settings.model.model_dump())


def _start_from(model: ScoreModel, init: str, settings: TrainConfig) -> None:
    """Gives `model` the weights of `init`. Raises ConfigError where they were trained to mean
    something else.
    """
    start = zoo.load_score_model(init, check=False)
    stored, wanted = zoo.settings_of(start), zoo.settings_of(model)
    own = {"image_shape", "t_max", "class_label"} | ({"sigma_data"} if settings.prediction != "edm" else set())
    different = [
        f"{name}={stored[name]!r} and not {wanted[name]!r}"
        for name in stored
        if name not in own and stored[name] != wanted[name]
    ]
    if different:
        raise ConfigError(
            f"init: {init} was trained with {'; '.join(different)}: give this run the same, or start without init"
        )
    _load_weights(model.network, start.network, settings)
    model.metadata = {"init": start.metadata}


def _load_weights(module: nn.Module, start: nn.Module, settings: TrainConfig) -> None:
    state = start.state_dict()
    checkpoint.check_names(
        module.state_dict(), state, f"init: {settings.init}", f"the {settings.architecture} of this configuration"
    )
    module.load_state_dict(state)
