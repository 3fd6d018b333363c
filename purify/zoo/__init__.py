"""Score models by name or path: the packaged ones, and files written by `save_score_model`."""

import difflib
import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from purify import networks, plugins, schedules
from purify.score.model import ScoreModel
from purify.zoo import checkpoint, guard, registry
from purify.zoo.checkpoint import CheckpointError
from purify.zoo.from_diffusers import load_diffusers
from purify.zoo.official import load_official
from purify.zoo.self_check import ScoreModelWarning, warn_if_implausible

__all__ = [
    "CheckpointError",
    "ScoreModelWarning",
    "find_score_model",
    "load_score_model",
    "packaged_score_models",
    "save_score_model",
    "settings_of",
    "warn_if_implausible",
]

KIND = "score_model"
_SUFFIX = ".score.safetensors"
_OF_DATA = {"cifar10": "cifar10-small"}
"""A data set's name stands for the packaged network that was trained on it, unless one bears that name itself."""


def packaged_score_models() -> dict[str, Path]:
    """Name -> file of the score models that come with the package. A data set's name, "cifar10", stands for the one
    trained on it.
    """
    folder = Path(str(resources.files("purify.zoo") / "weights"))
    files = {file.name.removesuffix(_SUFFIX): file for file in sorted(folder.glob("*" + _SUFFIX))}
    return {name: files[network] for name, network in _OF_DATA.items() if network in files} | files


def find_score_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a packaged name, or the path itself. Raises CheckpointError for what is neither."""
    path = packaged_score_models().get(str(name_or_path), Path(name_or_path))
    if path.is_file():
        return path
    if path.suffix:
        raise CheckpointError(f"no weight file at {path}")
    near = difflib.get_close_matches(str(name_or_path), [*packaged_score_models(), *registry.entries()], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise CheckpointError(
        f"no score model {str(name_or_path)!r}{hint} Packaged: {', '.join(packaged_score_models())}; known checkpoints:"
        " `purify models list`; else give the path of a .safetensors file or of a diffusers folder"
    )


def load_score_model(
    name_or_path: str | os.PathLike[str],
    architecture: str | None = None,
    config: dict[str, Any] | str | os.PathLike[str] | None = None,
    *,
    images: Tensor | None = None,
    check: bool = True,
) -> ScoreModel:
    """A frozen `ScoreModel` in evaluation mode, float32, on the CPU.

    Args:
        name_or_path: a packaged name ("fashion-mnist"), a name in the registry of known checkpoints (`purify models
            list`), the path of a file written by `save_score_model`, the folder of a `diffusers` UNet2DModel, or with
            `architecture` and `config` the path of an official checkpoint, see `purify.zoo.official.load_official`;
            or "module:FILE.py:NAME", your own function without arguments that returns a `ScoreModel`, which runs (see
            `purify.plugins`).
        architecture: of an official checkpoint: a name in `purify.networks.ARCHITECTURES`, for instance
            "score_sde/ncsnpp".
        config: of an official checkpoint: the official configuration, as a dictionary or a JSON file.
        images: (n, c, h, w) in [0, 1], a few like those that the network was trained on, for the check; smooth
            synthetic ones without.
        check: whether to look if the model denoises at all, and to warn (`ScoreModelWarning`) with the likely mistake
            if it does not; see `purify.zoo.self_check`. Costs one evaluation of three small images.

    Raises:
        CheckpointError: unknown name, weights that are not there, or a file that cannot be used.
        ValueError: an architecture or a configuration that cannot be used.
    """
    if (architecture is None) != (config is None):
        raise ValueError(
            f"architecture and config go together, got architecture={architecture!r} and config={config!r}"
        )
    if architecture is not None and config is not None:
        model = load_official(name_or_path, architecture, config)
    elif str(name_or_path) in registry.entries():
        model = _load_known(registry.find(str(name_or_path)))
    elif Path(name_or_path).is_dir():
        model = load_diffusers(name_or_path)
    elif _is_plugin(name_or_path):
        model = _load_plugin(str(name_or_path))
    else:
        model = _load_own(find_score_model(name_or_path))
    model.requires_grad_(False).eval()
    if check:
        warn_if_implausible(model, str(name_or_path), images)
    return model


def _is_plugin(name: str | os.PathLike[str]) -> bool:
    """Whether a plug-in is meant: one's name, unless a packaged network or a file bears it."""
    known = str(name) in packaged_score_models() or Path(name).is_file()
    return not known and plugins.is_plugin("score_models", name)


def _load_plugin(name: str) -> ScoreModel:
    expected = "a purify.ScoreModel"
    make = plugins.load("score_models", name, f"a function without arguments that returns {expected}")
    model: ScoreModel = plugins.call(name, make, ScoreModel, expected)
    return model.float().cpu()


def _load_known(entry: registry.Entry) -> ScoreModel:
    path = registry.path_of(entry)
    if entry.kind != "score":
        raise CheckpointError(f"{entry.name!r} in the registry is a {entry.kind} set, not a score model")
    if not registry.is_here(entry):
        raise CheckpointError(f"the weights {entry.name!r} are not at {path}: {registry.how_to_get(entry)}")
    for file, downloaded in registry.downloads_of(entry):
        if file.size is not None and downloaded.is_file() and downloaded.stat().st_size != file.size:
            raise CheckpointError(
                f"{downloaded} has {downloaded.stat().st_size:,} bytes, expected {file.size:,}: delete it, and"
                f" {registry.how_to_get(entry)}"
            )
    if entry.config is None or entry.architecture is None:
        return load_diffusers(path)
    return load_official(path, entry.architecture, entry.config)


def _load_own(path: Path) -> ScoreModel:
    guard.check_archive(path)
    description, tensors = checkpoint.read(path, KIND)
    try:
        network = checkpoint.build_with(
            lambda: networks.build(description["architecture"], description["config"]), tensors, path
        )
        schedule = schedules.from_description(description["schedule"])
        settings = {name: description[name] for name in _SETTINGS if name in description}
        for name in ("image_shape", "value_range"):
            if settings.get(name) is not None:
                settings[name] = tuple(settings[name])
        model = ScoreModel(network, schedule, **settings, metadata=description["provenance"])
    except CheckpointError:
        raise
    except checkpoint.UNUSABLE as error:
        raise CheckpointError(f"{path}: the description in the file's metadata cannot be used: {error!r}") from error
    return model


_SETTINGS = (
    "prediction",
    "image_shape",
    "time_scale",
    "time_label",
    "time_offset",
    "label_rounding",
    "t_max",
    "value_range",
    "classes",
    "sigma_data",
    "learned_variance",
)
"""Arguments of `ScoreModel` that a file's description holds under their own names."""


def settings_of(model: ScoreModel) -> dict[str, Any]:
    """What a score model is beside its network, JSON-compatible."""
    return {
        "schedule": schedules.describe(model.schedule),
        **{name: getattr(model, name) for name in _SETTINGS},
        "class_label": model.class_label,
    }


def save_score_model(
    path: str | os.PathLike[str],
    model: ScoreModel,
    architecture: str,
    config: dict[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes a model whose network is `networks.build(architecture, config)`; `model.metadata` is kept as its
    provenance.
    """
    description = {
        "kind": KIND,
        "architecture": architecture,
        "config": config,
        **settings_of(model),
        "provenance": model.metadata,
    }
    checkpoint.save(path, model.network, description, dtype)
