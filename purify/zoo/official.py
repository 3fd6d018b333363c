"""Checkpoints in the layouts of the official repositories, seen as `ScoreModel`s. Pickles are read without executing
anything they carry.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from purify import networks
from purify.schedules import EDM, VE, DiscreteVP, LinearVP, Schedule, SubVP
from purify.score.model import ScoreModel
from purify.zoo import checkpoint
from purify.zoo.checkpoint import CheckpointError
from purify.zoo.guard import named_tensors, read_tensors

_PROCESS_KEYS = {"guided_diffusion": ("diffusion_steps", "noise_schedule"), "ddpm": ("diffusion",)}
"""Parts of official configurations that say how the process is, not the network."""


def load_official(
    path: str | os.PathLike[str], architecture: str, config: dict[str, Any] | str | os.PathLike[str]
) -> ScoreModel:
    """The `ScoreModel` of an official checkpoint, float32, on the CPU.

    Args:
        path: a safetensors file or a PyTorch checkpoint: a plain state dict (guided-diffusion, DDPM, EDM exported), or
            score_sde's dictionary with `model` and `ema`, whose averaged weights are used. Half precision is converted.
        architecture: a name in `purify.networks.ARCHITECTURES`.
        config: the official configuration, as a dictionary or a JSON file.

    Raises:
        CheckpointError: a file that cannot be used, carries code, or does not fit the architecture.
        ValueError: an architecture or a configuration that cannot be used.
    """
    if not isinstance(config, dict):
        config = _read_config(Path(config))
    try:
        with torch.device("meta"):  # so that a configuration that cannot be used is refused before anything is read
            model = _score_model(architecture, build_network(architecture, config), config)
    except KeyError as error:
        raise ValueError(f"architecture {architecture!r}: the configuration has no {error}") from error
    path = Path(path)
    content = read_tensors(path)
    state = named_tensors(content, path)
    model.network = checkpoint.build_with(lambda: build_network(architecture, config), state, path)
    if "ema" in content:
        _load_average(model.network, content["ema"], path)
    checkpoint.check_finite(model.network.state_dict(), path)
    return model


def build_network(architecture: str, config: dict[str, Any]) -> nn.Module:
    """The network of an official configuration, freshly initialised. Raises ValueError for what cannot be used."""
    process = _PROCESS_KEYS.get(architecture.split("/")[0], ())
    return networks.build(architecture, {key: value for key, value in config.items() if key not in process})


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"config={str(path)!r} is not a readable JSON file: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"config={str(path)!r} must hold a mapping, got {type(config).__name__}")
    return config


def _load_average(network: nn.Module, average: Any, path: Path) -> None:
    """score_sde's moving average: a list of tensors in the order of the parameters that require gradients."""
    shadows = average.get("shadow_params") if isinstance(average, dict) else None
    if not isinstance(shadows, list) or not all(isinstance(shadow, Tensor) for shadow in shadows):
        raise CheckpointError(f"{path}: the moving average must be a mapping with a list of tensors `shadow_params`")
    parameters = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    if len(shadows) != len(parameters):
        raise CheckpointError(
            f"{path}: the moving average has {len(shadows)} tensors, the network {len(parameters)} parameters"
        )
    for (name, parameter), shadow in zip(parameters, shadows, strict=True):
        if parameter.shape != shadow.shape:
            raise CheckpointError(
                f"{path}: the moving average of {name!r} has shape {tuple(shadow.shape)}, expected"
                f" {tuple(parameter.shape)}"
            )
        parameter.data.copy_(shadow)


def _score_model(architecture: str, network: nn.Module, config: dict[str, Any]) -> ScoreModel:
    family = architecture.split("/")[0]
    if family == "score_sde":
        return _score_sde(network, config)
    if family == "edm":
        size, sigma_max = config["img_resolution"], config.get("sigma_max", 80.0)
        shape, classes = (config["img_channels"], size, size), config.get("label_dim") or None
        return ScoreModel(network, EDM(min(sigma_max, 80.0)), "x0", shape, time_label="sigma", classes=classes)
    if family == "guided_diffusion":
        shape = (config["in_channels"], config["image_size"], config["image_size"])
        kind, length = config.get("noise_schedule", "linear"), config.get("diffusion_steps", 1000)
        schedule, learned_variance = (
            chain(kind, length, 0.1 / length, 20 / length),
            config["out_channels"] == 2 * config["in_channels"],
        )
        return _chain_model(network, schedule, length, shape, config.get("num_classes"), learned_variance)
    if family == "ddpm":
        shape = (config["model"]["in_channels"], config["data"]["image_size"], config["data"]["image_size"])
        process = config.get("diffusion", {})
        length = process.get("num_diffusion_timesteps", 1000)
        schedule = chain(
            process.get("beta_schedule", "linear"),
            length,
            process.get("beta_start", 1e-4),
            process.get("beta_end", 0.02),
        )
        return _chain_model(network, schedule, length, shape, None)
    raise ValueError(f"architecture {architecture!r} has no official checkpoints; use load_score_model")


def chain(kind: str, length: int, first: float, last: float) -> Schedule:
    """The process of a DDPM chain with betas from `first` to `last`, by the name that official configurations have for
    it.

    Linear betas give the continuous limit, as DiffPure has it: it differs from the chain by terms in 1 / length.
    """
    match kind:
        case "linear":
            return LinearVP(first * length, last * length)
        case "scaled_linear" | "quad":
            return DiscreteVP.scaled_linear(length, first, last)
        case "cosine" | "squaredcos_cap_v2":
            return DiscreteVP.cosine(length)
    raise ValueError(f"noise schedule {kind!r} is not one of linear, scaled_linear, quad, cosine, squaredcos_cap_v2")


def _chain_model(
    network: nn.Module,
    schedule: Schedule,
    length: int,
    shape: tuple[int, int, int],
    classes: int | None,
    learned_variance: bool = False,
) -> ScoreModel:
    """Label k of a chain belongs to the marginal after k + 1 steps, t = (k + 1) / length."""
    settings: dict[str, Any] = dict(
        time_scale=float(length), time_offset=-1.0, classes=classes, learned_variance=learned_variance
    )
    return ScoreModel(network, schedule, "noise", shape, **settings)


def _score_sde(network: nn.Module, config: dict[str, Any]) -> ScoreModel:
    data, model, training = config["data"], config["model"], config["training"]
    shape, levels, sde = (
        (data["num_channels"], data["image_size"], data["image_size"]),
        model["num_scales"],
        training["sde"].lower(),
    )
    common: dict[str, Any] = dict(image_shape=shape, value_range=(-1.0, 1.0) if data["centered"] else (0.0, 1.0))
    continuous, ve = bool(training.get("continuous", True)), VE(model["sigma_min"], model["sigma_max"])
    if model["embedding_type"].lower() == "fourier":  # of ln(sigma), which only VE networks are given
        return ScoreModel(network, ve, "score", time_label="sigma", **common)
    if sde == "vesde" and not continuous:  # labels count the noise levels from the largest one
        return ScoreModel(
            network, ve, "score", time_scale=1.0 - levels, time_offset=levels - 1.0, label_rounding="nearest", **common
        )
    kinds: dict[str, type[LinearVP] | type[SubVP]] = {"vpsde": LinearVP, "subvpsde": SubVP}
    kind = kinds.get(sde)
    if kind is None:
        raise ValueError(
            f"training.sde={training['sde']!r} with positional labels is not one of vpsde, subvpsde, or vesde with"
            " training.continuous=False"
        )
    scale, offset = (999.0, 0.0) if continuous else (float(levels), -1.0)  # 999 whatever num_scales is
    return ScoreModel(
        network, kind(model["beta_min"], model["beta_max"]), "noise", time_scale=scale, time_offset=offset, **common
    )
