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

__all__ = ["CheckpointError", "load_score_model", "packaged_score_models", "save_score_model"]

KIND = "score_model"
_SUFFIX = ".score.safetensors"


def packaged_score_models() -> dict[str, Path]:
    """Name -> file of the score models that come with the package."""
    folder = Path(str(resources.files("purify.zoo") / "weights"))
    return {file.name.removesuffix(_SUFFIX): file for file in sorted(folder.glob("*" + _SUFFIX))}


def load_score_model(name_or_path: str | os.PathLike[str]) -> ScoreModel:
    """A frozen `ScoreModel` in evaluation mode, float32, on the CPU.

    Args:
        name_or_path: a packaged name ("fashion-mnist"), or the path of a file written by `save_score_model`.

    Raises:
        CheckpointError: unknown name, or a file that cannot be used.
    """
    packaged = packaged_score_models()
    path = packaged.get(str(name_or_path), Path(name_or_path))
    if not path.exists() and path.suffix != ".safetensors":
        raise CheckpointError(f"no score model {str(name_or_path)!r}: packaged are {', '.join(packaged) or 'none'}; else give a .safetensors path")
    description, tensors = checkpoint.read(path, KIND)
    try:
        network = networks.build(description["architecture"], description["config"])
        schedule = schedules.from_description(description["schedule"])
        image_shape = tuple(description["image_shape"])
        model = ScoreModel(
            network, schedule, description["prediction"], image_shape, description["time_scale"], description["t_max"], description["provenance"]
        )
    except (KeyError, TypeError, ValueError) as error:
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
        "t_max": model.t_max,
        "provenance": model.metadata,
    }
    checkpoint.save(path, model.network, description, dtype)
