"""Checkpoints in the layouts of the official repositories, seen as `ScoreModel`s. Pickles are read without executing anything they carry."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from purify import networks
from purify.schedules import EDM, VE, LinearVP, SubVP
from purify.score import ScoreModel
from purify.zoo import checkpoint
from purify.zoo.checkpoint import CheckpointError


def load_official(path: str | os.PathLike[str], architecture: str, config: dict[str, Any] | str | os.PathLike[str]) -> ScoreModel:
    """A frozen `ScoreModel` in evaluation mode, float32, on the CPU.

    Args:
        path: a safetensors file or a PyTorch checkpoint: a plain state dict (guided-diffusion, DDPM, EDM exported), or score_sde's dictionary with
            `model` and `ema`, whose averaged weights are used. Half precision is converted.
        architecture: a name in `purify.networks.ARCHITECTURES`.
        config: the official configuration, as a dictionary or a JSON file.

    Raises:
        CheckpointError: a file that cannot be used, carries code, or does not fit the architecture.
        ValueError: an architecture or a configuration that cannot be used.
    """
    if not isinstance(config, dict):
        config = _read_config(Path(config))
    path = Path(path)
    content = _read(path)
    network = networks.build(architecture, config)
    try:
        model = _score_model(architecture, network, config)
    except KeyError as error:
        raise ValueError(f"architecture {architecture!r}: the configuration has no {error}") from error
    state = content["model"] if isinstance(content.get("model"), dict) else content
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    odd = [name for name, tensor in state.items() if not isinstance(tensor, Tensor)]
    if odd:
        raise CheckpointError(f"{path} is not a state dict: {odd[0]!r} is a {type(state[odd[0]]).__name__}")
    checkpoint.check_finite(state, path)
    checkpoint.load_weights(network, state, path)
    if "ema" in content:
        _load_average(network, content["ema"], path)
    return model.requires_grad_(False).eval()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"config={str(path)!r} is not a readable JSON file: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"config={str(path)!r} must hold a mapping, got {type(config).__name__}")
    return config


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"no weight file at {path}")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} carries code, or is no PyTorch checkpoint, and is not unpickled. Export the weights with the code that they belong to: "
            f"safetensors.torch.save_file(network.state_dict(), 'weights.safetensors'). ({str(error).splitlines()[0]})"
        ) from error
    except (OSError, EOFError, RuntimeError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a dictionary of tensors, got {type(content).__name__}")
    return content


def _load_average(network: nn.Module, average: dict[str, Any], path: Path) -> None:
    """score_sde's moving average: a list of tensors in the order of the parameters that require gradients."""
    shadows = average.get("shadow_params", [])
    parameters = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    if len(shadows) != len(parameters):
        raise CheckpointError(f"{path}: the moving average has {len(shadows)} tensors, the network {len(parameters)} parameters")
    for (name, parameter), shadow in zip(parameters, shadows, strict=True):
        if parameter.shape != shadow.shape:
            raise CheckpointError(f"{path}: the moving average of {name!r} has shape {tuple(shadow.shape)}, expected {tuple(parameter.shape)}")
        checkpoint.check_finite({f"ema of {name}": shadow}, path)
        parameter.data.copy_(shadow)


def _score_model(architecture: str, network: nn.Module, config: dict[str, Any]) -> ScoreModel:
    family = architecture.split("/")[0]
    if config.get("num_classes") is not None or config.get("label_dim"):
        raise ValueError("num_classes, label_dim: class-conditional networks need labels, which a purifier does not have")
    if family == "score_sde":
        return _score_sde(network, config)
    if family == "edm":
        size, sigma_max = config["img_resolution"], config.get("sigma_max", 80.0)
        return ScoreModel(network, EDM(min(sigma_max, 80.0)), "x0", (config["img_channels"], size, size), time_label="sigma")
    # DDPM's chain of 1,000 steps, betas 1e-4 .. 0.02: the limit is LinearVP's default, and label k belongs to t = (k + 1) / 1000.
    if family == "guided_diffusion":
        shape = (config["in_channels"], config["image_size"], config["image_size"])
    elif family == "ddpm":
        shape = (config["model"]["in_channels"], config["data"]["image_size"], config["data"]["image_size"])
    else:
        raise ValueError(f"architecture {architecture!r} has no official checkpoints; use load_score_model")
    return ScoreModel(network, LinearVP(), "noise", shape, time_scale=1000.0, time_offset=-1.0)


def _score_sde(network: nn.Module, config: dict[str, Any]) -> ScoreModel:
    data, model, training = config["data"], config["model"], config["training"]
    shape, scale = (data["num_channels"], data["image_size"], data["image_size"]), float(model["num_scales"] - 1)
    if model["embedding_type"] == "fourier" or model["scale_by_sigma"]:
        if not data["centered"]:
            network, factor = _UnitRange(network), 2.0  # what is sigma on [0, 1] is 2 sigma on [-1, 1]
        else:
            factor = 1.0
        return ScoreModel(network, VE(factor * model["sigma_min"], factor * model["sigma_max"]), "score", shape, time_label="sigma")
    kind = {"vpsde": LinearVP, "subvpsde": SubVP}.get(training["sde"].lower())
    if not data["centered"]:
        raise ValueError("data.centered=False goes with VE networks: a VP network sees images in [-1, 1]")
    if kind is None:
        raise ValueError(f"training.sde={training['sde']!r} with positional labels is not one of vpsde, subvpsde")
    return ScoreModel(network, kind(model["beta_min"], model["beta_max"]), "noise", shape, time_scale=scale)


class _UnitRange(nn.Module):
    """A score network of images in [0, 1], seen on [-1, 1]: with u = (x + 1) / 2 the score in x is half of that in u."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.size_multiple = network.size_multiple

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.network((x + 1) / 2, sigma / 2) / 2
