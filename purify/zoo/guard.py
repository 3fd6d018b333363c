"""Reads checkpoints from strangers: nothing in them is executed, and what they declare is bounded before memory is
taken.

A PyTorch file is a zip archive of uncompressed entries with a pickle in it, or (older) a pickle followed by the
numbers; safetensors is a JSON header followed by the numbers.
"""

import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from purify.zoo import pickles
from purify.zoo.checkpoint import CheckpointError

LARGEST_HEADER = 16 * 2**20
"""Bytes of a safetensors header: about 100,000 tensors."""
LARGEST_PICKLE = 64 * 2**20
"""Bytes of the pickle inside a PyTorch file: names and shapes only."""
_MOST_ENTRIES = 200_000
_MOST_SHARING = 4  # tied weights and views name the same numbers more than once

EXPORT = (
    "Export the weights with the code that they belong to: safetensors.torch.save_file(network.state_dict(),"
    " 'weights.safetensors')."
)


class CarriesCode(CheckpointError):
    """A pickle that asks for more than tensors; `imports` are what it would import, "module.name"."""

    def __init__(self, path: Path, reason: str):
        self.imports = pickles.imports_of(path)
        what = (
            f"it would import {', '.join(self.imports[:5])}"
            if self.imports
            else reason.splitlines()[0]
            if reason
            else "it is damaged"
        )
        super().__init__(f"{path} carries code, or is no PyTorch checkpoint, and is not unpickled ({what}). {EXPORT}")


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a .pt, .pth, .ckpt or .safetensors file: a dictionary of tensors on the CPU, in PyTorch files
    possibly nested.

    Numbers are not looked at: NaN is the caller's to find. Tensors of PyTorch files may be mapped from the file, so
    that only what is used is read.

    Raises:
        CheckpointError: no such file, not a whole checkpoint, one that carries code, or that declares more than it
            holds.
    """
    path = Path(path)
    kind = kind_of(path)
    check_archive(path)
    if kind == "zip":
        declared(path)
    content = _load(path, kind, "cpu")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a dictionary of tensors, got {type(content).__name__}")
    _check_tensors(content, path, "cpu")
    return content


_NESTED = ("state_dict", "model_state_dict", "model")


def named_tensors(content: dict[str, Any], path: Path, prefixes: Sequence[str] = ("module.",)) -> dict[str, Tensor]:
    """The state dict in a checkpoint's content: the whole, or what lies under "state_dict", "model_state_dict" or
    "model" (looked for in this order).

    Args:
        content: see `read_tensors`.
        path: of the file, for messages.
        prefixes: the first that all names begin with is taken off, for instance "module." of data-parallel training.

    Raises:
        CheckpointError: it is empty, or holds anything but named tensors.
    """
    content = next((content[key] for key in _NESTED if isinstance(content.get(key), dict)), content)
    odd = [name for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if odd or not content:
        found = f"{odd[0]!r} is a {type(content[odd[0]]).__name__}" if odd else "it is empty"
        raise CheckpointError(f"{path} is not a state dict, as it is or under {', '.join(map(repr, _NESTED))}: {found}")
    prefix = next((prefix for prefix in prefixes if all(name.startswith(prefix) for name in content)), "")
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def declared(path: str | os.PathLike[str]) -> Any:
    """The content of a PyTorch file with tensors on the meta device: names, shapes and types, no numbers.

    Raises:
        CheckpointError: see `read_tensors`.
    """
    path = Path(path)
    check_archive(path)
    content = _load(path, "pickle", "meta")
    _check_tensors(content, path, "meta")
    return content


def _load(path: Path, kind: str, device: str) -> Any:
    try:
        if kind == "safetensors":
            return load_file(path)
        pickles.check(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and sparse tensors; both are answered here
            return torch.load(path, map_location=device, weights_only=True, mmap=kind == "zip")
    except pickle.UnpicklingError as error:
        raise CarriesCode(path, str(error)) from error
    except Exception as error:  # whatever the bytes of a broken or hostile file make the reader raise
        raise CheckpointError(
            f"{path} is not a whole checkpoint: {type(error).__name__}: {first_line(error)}"
        ) from error


def kind_of(path: Path) -> str:
    """By the first bytes: "zip" (PyTorch), "pickle" (older PyTorch, or any other pickle) or "safetensors".

    Raises:
        CheckpointError: no such file, one that cannot be read, or a web page.
    """
    if not path.is_file():
        raise CheckpointError(f"no weight file at {path}")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(
            f"{path} is a web page, not a checkpoint: its download was answered with a message for people. Delete it"
            " and fetch it again"
        )
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return "safetensors"
    return "zip" if start.startswith(b"PK") else "pickle"


def check_archive(path: str | os.PathLike[str]) -> None:
    """Bounds what a checkpoint declares, before anything of that size is read.

    Raises:
        CheckpointError: a safetensors header longer than the file or than `LARGEST_HEADER`; a zip archive with
            compressed entries, with entries that declare more than the file's size (a zip bomb), or with too large a
            pickle.
    """
    path = Path(path)
    kind, size = kind_of(path), path.stat().st_size
    if kind == "safetensors":
        header_length(path)
    if kind != "zip":
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from error
    declared = sum(entry.file_size for entry in entries)
    if declared > size:
        raise CheckpointError(
            f"{path} is not a checkpoint: its entries declare {declared:,} bytes in a file of {size:,}, as a zip bomb"
            " does"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{path} is not a checkpoint: its entries are compressed, and those that PyTorch writes are not"
        )
    if len(entries) > _MOST_ENTRIES:
        raise CheckpointError(
            f"{path} is not a checkpoint: it has {len(entries):,} entries, expected at most {_MOST_ENTRIES:,}"
        )
    pickled = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if pickled > LARGEST_PICKLE:
        raise CheckpointError(
            f"{path} is not a checkpoint: its pickle has {pickled:,} bytes, expected at most {LARGEST_PICKLE:,}"
        )


def header_length(path: Path) -> int:
    """Bytes of a safetensors file's header. Raises CheckpointError where the file is too short for it, or it is larger
    than `LARGEST_HEADER`.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: its header declares {length:,} bytes in a file of {size:,}"
        )
    if length > LARGEST_HEADER:
        raise CheckpointError(
            f"{path} is not a checkpoint: its safetensors header has {length:,} bytes, expected at most"
            f" {LARGEST_HEADER:,}"
        )
    return length


def tensors_in(content: Any) -> Iterator[Tensor]:
    """Every tensor in nested dictionaries, lists and tuples, each container once."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict | list | tuple | set) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _check_tensors(content: Any, path: Path, device: str) -> None:
    """Plain dense tensors on the device that together are not much more than the file, or CheckpointError."""
    size, total = path.stat().st_size, 0
    for tensor in tensors_in(content):
        if (
            type(tensor) not in (Tensor, nn.Parameter)
            or tensor.layout != torch.strided
            or tensor.is_quantized
            or tensor.device.type != device
        ):
            raise CheckpointError(
                f"{path} holds a {tensor.layout} {type(tensor).__name__} on {tensor.device}, expected dense tensors"
            )
        total += tensor.numel() * tensor.element_size()
        if total > _MOST_SHARING * size:
            raise CheckpointError(
                f"{path} is not a checkpoint: its tensors declare more than {total:,} bytes in a file of {size:,}"
            )


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [""])[0]
