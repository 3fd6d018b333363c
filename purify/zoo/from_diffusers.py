"""Folders in the layout of Hugging Face `diffusers`: a UNet2DModel and its scheduler. Needs the optional extra
`purify[diffusers]`.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from purify.schedules import VE, DiscreteVP
from purify.score.model import ScoreModel
from purify.score.parametrisation import Prediction
from purify.zoo import checkpoint
from purify.zoo.checkpoint import CheckpointError
from purify.zoo.official import chain

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}


def load_diffusers(folder: str | os.PathLike[str]) -> ScoreModel:
    """The UNet2DModel of a folder that `save_pretrained` wrote: a pipeline's (`unet/`, `scheduler/`), or the model's
    with `scheduler_config.json` beside it.

    Raises:
        CheckpointError: `diffusers` is not installed, files are missing, weights are not safetensors or do not fit, or
            a scheduler that is not known here.
    """
    folder = Path(folder)
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    config = _read(unet_folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise CheckpointError(
            f"{unet_folder} holds a {config.get('_class_name')!r}: a purifier takes a UNet2DModel, of images and"
            " unconditional or by class"
        )
    scheduler = next(
        (
            file
            for file in (folder / "scheduler" / "scheduler_config.json", unet_folder / "scheduler_config.json")
            if file.is_file()
        ),
        None,
    )
    if scheduler is None:
        raise CheckpointError(
            f"{folder} has no scheduler/scheduler_config.json, which says what process the network was trained on"
        )
    settings = _understood(_settings, _read(scheduler), scheduler)
    shape, multiple = _understood(_shape, config, unet_folder / "config.json")
    return ScoreModel(
        _Sample(_unet(unet_folder), multiple), **settings, image_shape=shape, classes=config.get("num_class_embeds")
    )


def _understood(reader: Callable[[dict[str, Any]], Any], config: dict[str, Any], path: Path) -> Any:
    try:
        return reader(config)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: a {config.get('_class_name')!r} that is not understood: {error!r}") from error


def _shape(config: dict[str, Any]) -> tuple[tuple[int, int, int] | None, int]:
    """Image shape, None where any size is taken, and what sizes must be multiples of."""
    size, multiple = config["sample_size"], 2 ** (len(config["block_out_channels"]) - 1)
    if size is None:
        return None, multiple
    height, width = size if isinstance(size, list) else (size, size)
    return (config["in_channels"], height, width), multiple


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not a readable JSON file: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a mapping, got {type(content).__name__}")
    return content


def _unet(folder: Path) -> nn.Module:
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise CheckpointError(
            f"{folder} is a diffusers model; loading it needs `pip install purify[diffusers]` ({error})"
        ) from error
    if not (folder / "diffusion_pytorch_model.safetensors").is_file():
        raise CheckpointError(
            f"{folder} has no diffusion_pytorch_model.safetensors; other formats may carry code and are not read"
        )
    load: Callable[..., tuple[nn.Module, dict[str, list[str]]]] = UNet2DModel.from_pretrained
    try:
        unet, report = load(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, low_cpu_mem_usage=False
        )
    except (*checkpoint.UNUSABLE, OSError) as error:
        raise CheckpointError(f"{folder} cannot be loaded as a UNet2DModel: {error}") from error
    problems = {kind: keys for kind, keys in report.items() if keys}
    if problems:
        raise CheckpointError(f"{folder}: the weights do not fit the configuration: {problems}")
    checkpoint.check_finite(unet.state_dict(), folder)
    return unet


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Schedule, prediction and labels that a scheduler's configuration stands for."""
    # score_sde's VE networks: images in [0, 1], labelled by sigma
    if config.get("_class_name") == "ScoreSdeVeScheduler":
        return dict(
            schedule=VE(config["sigma_min"], config["sigma_max"]),
            prediction="score",
            time_label="sigma",
            value_range=(0.0, 1.0),
        )
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(
            "rescale_betas_zero_snr=True ends in pure noise, where a network of this kind has no noise to predict"
        )
    # what it was called before `prediction_type`
    prediction = "epsilon" if config.get("predict_epsilon", True) else "sample"
    length, schedule = config["num_train_timesteps"], None
    if config.get("trained_betas") is not None:
        schedule = DiscreteVP(tuple(config["trained_betas"]))
    return dict(
        schedule=schedule or chain(config["beta_schedule"], length, config["beta_start"], config["beta_end"]),
        prediction=_PREDICTIONS[config.get("prediction_type", prediction)],
        time_scale=float(length),
        time_offset=-1.0,
    )


class _Sample(nn.Module):
    """A UNet2DModel as the networks here are called."""

    def __init__(self, unet: nn.Module, size_multiple: int):
        super().__init__()
        self.unet = unet
        self.size_multiple = size_multiple

    def forward(self, x: Tensor, labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        sample: Tensor = self.unet(x, labels, class_labels).sample
        return sample
