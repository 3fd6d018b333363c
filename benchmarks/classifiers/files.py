"""Weight files from other people: found or explained, and loaded strictly. `purify.zoo.guard` reads them without executing anything."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from purify.zoo import checkpoint
from purify.zoo.checkpoint import CheckpointError
from purify.zoo.guard import read_tensors

DRY_RUN = "For a dry run weights='random' is enough."
_NESTED = ("state_dict", "model_state_dict", "model")
_SHOWN = 3


def find(candidates: Sequence[Path], what: str, way: str) -> Path:
    """The first candidate that is a file.

    Args:
        candidates: where the file may lie, at least one; the first is where it should be put.
        what: what is missing, for the message.
        way: how to get it, a sentence.

    Raises:
        CheckpointError: none is there; the message gives the places and the way.
    """
    for path in candidates:
        if path.is_file():
            return path
    elsewhere = f" (nor at {' or '.join(map(str, candidates[1:]))})" if len(candidates) > 1 else ""
    raise CheckpointError(f"{what}: the weights are not at {candidates[0]}{elsewhere}. {way}")


def state_dict(path: Path, prefixes: Sequence[str] = ("module.",)) -> dict[str, Tensor]:
    """The named tensors of a .pt, .pth or .safetensors file, on the CPU.

    Args:
        path: holds a state dict, or a dictionary with one under "state_dict", "model_state_dict" or "model" (looked for in this order).
        prefixes: the first that all names begin with is taken off, for instance "module." of data-parallel training.

    Raises:
        CheckpointError: a file that cannot be used or carries code, that holds something else, or NaN or infinity among the tensors.
    """
    content = read_tensors(path)
    content = next((content[key] for key in _NESTED if isinstance(content.get(key), dict)), content)
    odd = [name for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if odd or not content:
        found = f"{odd[0]!r} is a {type(content[odd[0]]).__name__}" if odd else "it is empty"
        raise CheckpointError(f"{path} must hold named tensors, as they are or under {', '.join(map(repr, _NESTED))}; {found}")
    prefix = next((prefix for prefix in prefixes if all(name.startswith(prefix) for name in content)), "")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    checkpoint.check_finite(tensors, path)
    return tensors


def load_strictly(model: nn.Module, tensors: dict[str, Tensor], path: Path, what: str) -> None:
    """Loads `tensors` into `model`, every name and shape equal. Raises CheckpointError that lists the first differences."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    common = [(name, tuple(tensors[name].shape), tuple(tensor.shape)) for name, tensor in expected.items() if name in tensors]
    shapes = [f"{name} {found} instead of {wanted}" for name, found, wanted in common if found != wanted]
    differences = [
        f"{kind}: {', '.join(names[:_SHOWN])}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("shapes", shapes))
        if names
    ]
    if differences:
        raise CheckpointError(f"{path}: the weights do not fit {what}: {'; '.join(differences)}")
    model.load_state_dict(tensors)


def hub_checkpoint(url: str) -> Path:
    """Where torch.hub, and with it torchvision and timm, keeps what it downloads from `url`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / file_name(url)


def file_name(url: str) -> str:
    """The last part of an address, without a query."""
    return re.split(r"[?#]", url, maxsplit=1)[0].rsplit("/", 1)[-1]


def is_weight_file(weights: str) -> bool:
    """Whether `weights` names a file and not a version: it exists, or ends like one."""
    return os.path.isfile(weights) or weights.endswith((".pt", ".pth", ".safetensors", ".bin", ".ckpt", ".tar"))
