"""Weight files from other people: found or explained, and loaded strictly. `purify.zoo.guard` reads them without
executing anything.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from purify.zoo import checkpoint
from purify.zoo.checkpoint import CheckpointError
from purify.zoo.guard import named_tensors, read_tensors


class MissingWeights(CheckpointError):
    """Weights that are known, and not here; the message says where they belong and how to get them."""


DRY_RUN = "For a dry run weights='random' is enough."


def find(candidates: Sequence[Path], what: str, way: str) -> Path:
    """The first candidate that is a file.

    Args:
        candidates: where the file may lie, at least one; the first is where it should be put.
        what: what is missing, for the message.
        way: how to get it, a sentence.

    Raises:
        MissingWeights: none is there; the message gives the places and the way.
    """
    for path in candidates:
        if path.is_file():
            return path
    elsewhere = f" (nor at {' or '.join(map(str, candidates[1:]))})" if len(candidates) > 1 else ""
    raise MissingWeights(f"{what}: the weights are not at {candidates[0]}{elsewhere}. {way}")


def state_dict(path: Path, prefixes: Sequence[str] = ("module.",)) -> dict[str, Tensor]:
    """The named tensors of a .pt, .pth or .safetensors file, on the CPU.

    Args:
        path: holds a state dict, or a dictionary with one under "state_dict", "model_state_dict" or "model" (looked for
            in this order).
        prefixes: the first that all names begin with is taken off, for instance "module." of data-parallel training.

    Raises:
        CheckpointError: a file that cannot be used or carries code, that holds something else, or NaN or infinity among
            the tensors.
    """
    tensors = named_tensors(read_tensors(path), path, prefixes)
    checkpoint.check_finite(tensors, path)
    return tensors


def load_strictly(model: nn.Module, tensors: dict[str, Tensor], path: Path, what: str) -> None:
    """Loads `tensors` into `model`, every name and shape equal. Raises CheckpointError that lists the first
    differences.
    """
    checkpoint.check_names(model.state_dict(), tensors, path, what)
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
