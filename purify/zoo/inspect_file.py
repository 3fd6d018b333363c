"""What a weight file holds, without loading a tensor and without executing anything."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from purify.zoo import guard, registry
from purify.zoo.checkpoint import METADATA_KEY, CheckpointError

_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_DEEPEST = 4


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's name, shape and type ("float32")."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class FileInfo:
    """What `inspect` found.

    Args:
        format: "safetensors", "PyTorch" or "pickle with code".
        size: bytes of the file.
        tensors: of safetensors all, of PyTorch files those of the state dict.
        description: what this package wrote about the model, None in other files.
        metadata: other texts in a safetensors header.
        layout: the nested content of a PyTorch file, a line each.
        imports: what a pickle with code would import, "module.name".
        has_average: whether a moving average of the weights is there too.
        has_optimizer: whether the state of an optimiser is there.
    """

    format: str
    size: int
    tensors: tuple[TensorInfo, ...] = ()
    description: dict[str, Any] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    layout: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    has_average: bool = False
    has_optimizer: bool = False


def inspect(path: str | os.PathLike[str]) -> FileInfo:
    """Reads the header of a safetensors file, or the pickle of a PyTorch file with tensors on the meta device.

    Raises:
        CheckpointError: no such file, a web page, not a whole checkpoint, or one that declares more than it holds.
    """
    path = Path(path)
    guard.check_archive(path)
    if guard.kind_of(path) == "safetensors":
        return _inspect_safetensors(path)
    try:
        content = guard.declared(path)
    except guard.CarriesCode as refusal:
        if not refusal.imports:
            raise
        return FileInfo("pickle with code", path.stat().st_size, imports=refusal.imports)
    try:
        state = guard.named_tensors(content, path) if isinstance(content, dict) else {}
    except CheckpointError:
        state = {}
    tensors = tuple(_describe(name, tensor) for name, tensor in state.items())
    names = [str(key).lower() for key in content] if isinstance(content, dict) else []
    return FileInfo(
        "PyTorch",
        path.stat().st_size,
        tensors,
        layout=tuple(_lines(content)),
        has_average=any("ema" in name.replace("_", "-").split("-") or "shadow" in name for name in names),
        has_optimizer=any("optim" in name for name in names),
    )


def fitting_entries(tensors: tuple[TensorInfo, ...]) -> list[str]:
    """Names of the registry's score models whose networks have exactly these tensors."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    fitting = []
    for entry in registry.entries().values():
        network = registry.network_of(entry)
        if (
            network is not None
            and {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == shapes
        ):
            fitting.append(entry.name)
    return fitting


def _inspect_safetensors(path: Path) -> FileInfo:
    length = guard.header_length(path)
    with open(path, "rb") as file:
        file.seek(8)
        header = file.read(length)
    size = path.stat().st_size
    try:
        content = json.loads(header)
        metadata = dict(content.pop("__metadata__", {}))
        tensors = tuple(
            TensorInfo(name, tuple(entry["shape"]), _TYPES.get(entry["dtype"], entry["dtype"]))
            for name, entry in content.items()
        )
        end = max((entry["data_offsets"][1] for entry in content.values()), default=0)
        text = metadata.pop(METADATA_KEY, None)
        description = None if text is None else json.loads(text)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: its header cannot be read: {error!r}"
        ) from error
    if end != size - 8 - length:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: its tensors end at byte {end:,}, its content has"
            f" {size - 8 - length:,}"
        )
    return FileInfo("safetensors", size, tensors, description, metadata)


def _describe(name: str, tensor: Tensor) -> TensorInfo:
    return TensorInfo(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _lines(content: Any, name: str = "content", depth: int = 0) -> Iterator[str]:
    """The nested content, containers and what is in them to a limited depth; long runs of alike things in one line."""
    space = "  " * depth
    if isinstance(content, Tensor):
        yield f"{space}{name}: {content.dtype} {tuple(content.shape)}".replace("torch.", "")
    elif isinstance(content, dict | list | tuple):
        items = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
        tensors = [value for _, value in items if isinstance(value, Tensor)]
        yield f"{space}{name}: {type(content).__name__} of {len(items)}" + (
            f", {len(tensors)} tensors" if tensors else ""
        )
        if depth < _DEEPEST:
            for key, value in [item for item in items if not isinstance(item[1], Tensor)][:12]:
                yield from _lines(value, str(key), depth + 1)
    else:
        yield f"{space}{name}: {str(content)[:60]}"
