"""timm's classifiers: "timm:NAME", with or without the tag of the weights ("deit_small_patch16_224.fb_in1k")."""

import math
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from timm.data import resolve_model_data_config
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import Tensor, nn

from benchmarks.classifiers import files as weights_on_disk
from benchmarks.classifiers.preprocessing import Preprocessed
from benchmarks.classifiers.request import Request, nearest
from purify.zoo import checkpoint
from purify.zoo.checkpoint import CheckpointError
from purify.zoo.folders import models_folder

_SAFE_NAMES = {"pytorch_model.bin": "model.safetensors", "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}
"""What timm prefers to a file of a Hugging Face repository, where it is there."""


def load(request: Request) -> nn.Module:
    """The model behind the evaluation transform of its configuration (size, `crop_pct`, `crop_mode`, interpolation,
    mean, std).
    """
    _configuration(request.name)
    path = None if request.random else files(request)[0]
    model = create(request.name, path)
    data = resolve_model_data_config(model)
    size = data["input_size"][1:]
    scaled = tuple(math.floor(side / data["crop_pct"]) for side in size)
    if data["crop_mode"] == "center" and size[0] == size[1]:
        resize = scaled[0]
    elif data["crop_mode"] == "squash":
        resize = scaled
    else:
        raise ValueError(
            f"timm:{request.name} has crop_mode={data['crop_mode']!r} for images of {tuple(size)}, which is not known"
            " here"
        )
    return Preprocessed(model, data["mean"], data["std"], tuple(size), resize, data["interpolation"])


def files(request: Request) -> tuple[Path, ...]:
    """The user's file, else the pretrained weights in our folder, in the cache of huggingface_hub or in torch.hub's."""
    if request.weights is not None:
        if not weights_on_disk.is_weight_file(request.weights):
            raise ValueError(
                f"weights={request.weights!r}: timm's versions are part of the name (timm:NAME.TAG); else give a file,"
                " or 'random'"
            )
        return (Path(request.weights),)
    configuration = _configuration(request.name)
    place, url = timm_source(request.name)
    cached = []
    if configuration.hf_hub_id:
        repository, _, revision = configuration.hf_hub_id.partition("@")
        for name in _repository_files(configuration):
            found = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
            cached += [Path(found)] if isinstance(found, str) else []
    if isinstance(configuration.url, str) and configuration.url and not configuration.custom_load:
        cached.append(weights_on_disk.hub_checkpoint(configuration.url))
    way = (
        f"Get them with `purify models fetch timm:{request.name}`, or download {url} to there, or give weights=FILE."
        f" {weights_on_disk.DRY_RUN}"
    )
    return (weights_on_disk.find((place, *cached), f"timm:{request.name}", way),)


def timm_source(name: str) -> tuple[Path, str]:
    """Where the pretrained weights are looked for first, and their address. Raises CheckpointError for what timm does
    not have.
    """
    configuration = _configuration(name)
    if configuration.hf_hub_id:
        repository, _, revision = configuration.hf_hub_id.partition("@")
        url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{_repository_files(configuration)[0]}"
    elif isinstance(configuration.url, str) and configuration.url and not configuration.custom_load:
        url = configuration.url
    else:
        raise CheckpointError(
            f"timm has no pretrained weights of {name!r} that can be read here; give weights=FILE, or weights='random'"
        )
    full = (
        f"{configuration.architecture or name}.{configuration.tag}"
        if configuration.tag
        else configuration.architecture or name
    )
    return models_folder() / "timm" / (full + Path(weights_on_disk.file_name(url)).suffix), url


def create(name: str, path: Path | None, classes: int | None = None) -> nn.Module:
    """timm's model with the weights of a file, put in by timm's own conversion of old layouts; None: as initialised.

    Args:
        name: a registered name.
        path: of a .pt, .pth or .safetensors file.
        classes: where it is not what the configuration says.

    Raises:
        CheckpointError: a file that cannot be used.
    """
    arguments = {} if classes is None else {"num_classes": classes}
    if path is None:
        fresh: nn.Module = timm.create_model(name, **arguments)
        return fresh
    tensors: dict[str, Tensor] = weights_on_disk.state_dict(path)
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={"state_dict": tensors}, **arguments
        )
    except checkpoint.UNUSABLE as error:
        raise CheckpointError(
            f"{path}: the weights do not fit timm's {name}: {_shortened(str(error) or repr(error))}"
        ) from error
    for module in model.modules():
        used: Any = getattr(module, "pretrained_cfg", None)
        if isinstance(used, dict):
            used["state_dict"] = None  # a second copy of the weights otherwise
    return model


def _configuration(name: str) -> PretrainedCfg:
    """timm's configuration of a name. Raises CheckpointError for an unknown name or tag, or a model without a head."""
    if not timm.is_model(name):
        raise CheckpointError(f"timm has no model {name!r}; did you mean {nearest(name, timm.list_models())}?")
    try:
        configuration = get_pretrained_cfg(name) or PretrainedCfg(architecture=name)
    except RuntimeError as error:
        architecture, _, tag = name.partition(".")
        known = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise CheckpointError(f"timm's {architecture} has no weights {tag!r}; known: {known}") from error
    if configuration.num_classes < 2:
        raise CheckpointError(f"timm:{name} has no classification head: its weights are those of a feature extractor")
    return configuration


def _repository_files(configuration: PretrainedCfg) -> tuple[str, ...]:
    """Files of the Hugging Face repository that may hold the weights, the one that timm prefers first."""
    name = configuration.hf_hub_filename or "pytorch_model.bin"
    return (_SAFE_NAMES[name], name) if name in _SAFE_NAMES else (name,)


def _shortened(message: str, length: int = 500) -> str:
    """One line, cut: PyTorch lists every tensor of a wrong file."""
    line = " ".join(message.split())
    return line if len(line) <= length else line[:length] + " ..."
