"""Score models by name or path: the packaged ones, and files written by `save_score_model`."""

import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from purify import networks, schedules
from purify.score import ScoreModel
from purify.zoo import checkpoint
from purify.zoo.checkpoint import CheckpointError
from purify.zoo.official import load_official

__all__ = ["CheckpointError", "find_score_model", "load_score_model", "packaged_score_models", "save_score_model"]

KIND = "score_model"
_SUFFIX = ".score.safetensors"


def packaged_score_models() -> dict[str, Path]:
    """Name -> file of the score models that come with the package."""
    folder = Path(str(resources.files("purify.zoo") / "weights"))
    return {file.name.removesuffix(_SUFFIX): file for file in sorted(folder.glob("*" + _SUFFIX))}


def find_score_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a packaged name, or the path itself. Raises CheckpointError for what is neither."""
    return checkpoint.find(name_or_path, packaged_score_models(), "score model")


def load_score_model(
    name_or_path: str | os.PathLike[str], architecture: str | None = None, config: dict[str, Any] | str | os.PathLike[str] | None = None
) -> ScoreModel:
    """A frozen `ScoreModel` in evaluation mode, float32, on the CPU.

    Args:
        name_or_path: a packaged name ("fashion-mnist"), or the path of a file written by `save_score_model`, or with `architecture` and `config`
            that of an official checkpoint, see `purify.zoo.official.load_official`.
        architecture: of an official checkpoint: a name in `purify.networks.ARCHITECTURES`, for instance "score_sde/ncsnpp".
        config: of an official checkpoint: the official configuration, as a dictionary or a JSON file.

    Raises:
        CheckpointError: unknown name, or a file that cannot be used.
        ValueError: an architecture or a configuration that cannot be used.
    """
    if (architecture is None) != (config is None):
        raise ValueError(f"architecture and config go together, got architecture={architecture!r} and config={config!r}")
    if architecture is not None and config is not None:
        return load_official(name_or_path, architecture, config)
    path = find_score_model(name_or_path)
    description, tensors = checkpoint.read(path, KIND)
    try:
        network = networks.build(description["architecture"], description["config"])
        schedule = schedules.from_description(description["schedule"])
        image_shape = None if description["image_shape"] is None else tuple(description["image_shape"])
        model = ScoreModel(
            network,
            schedule,
            description["prediction"],
            image_shape,
            time_scale=description["time_scale"],
            time_label=description.get("time_label", "t"),
            time_offset=description.get("time_offset", 0.0),
            floor_labels=description.get("floor_labels", False),
            t_max=description["t_max"],
            metadata=description["provenance"],
        )
    except checkpoint.UNUSABLE as error:
        raise CheckpointError(f"{path}: the description in the file's metadata cannot be used: {error!r}") from error
    checkpoint.load_weights(network, tensors, path)
    return model.requires_grad_(False).eval()


def save_score_model(path: str | os.PathLike[str], model: ScoreModel, architecture: str, config: dict[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Writes a model whose network is `networks.build(architecture, config)`; `model.metadata` is kept as its provenance."""
    description = {
        "kind": KIND,
        "architecture": architecture,
        "config": config,
        "schedule": schedules.describe(model.schedule),
        "prediction": model.prediction,
        "image_shape": model.image_shape,
        "time_scale": model.time_scale,
        "time_label": model.time_label,
        "time_offset": model.time_offset,
        "floor_labels": model.floor_labels,
        "t_max": model.t_max,
        "provenance": model.metadata,
    }
    checkpoint.save(path, model.network, description, dtype)
