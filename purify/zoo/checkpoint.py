"""Weights with a description of what they are, in one safetensors file.

The description is JSON under the metadata key "purify"; nothing in the file is executed. Weights may be stored in half
precision; they come back as float32.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

METADATA_KEY = "purify"
Module = TypeVar("Module", bound=nn.Module)


UNUSABLE = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What building a model from a description that anybody may have written can raise."""


class CheckpointError(ValueError):
    """A weight file that cannot be used; the message names the file and says why."""


def save(
    path: str | os.PathLike[str], module: nn.Module, description: dict[str, Any], dtype: torch.dtype = torch.float16
) -> None:
    """Writes the module's state, floating-point tensors as `dtype`, beside `description`; an existing file is replaced
    atomically.

    Raises:
        CheckpointError: weights that are not finite, or not in `dtype`'s range.
        OSError: the file cannot be written.
    """
    state = {
        name: t.detach().to("cpu", dtype if t.is_floating_point() else t.dtype).contiguous()
        for name, t in module.state_dict().items()
    }
    path = Path(path)
    check_finite(state, path)
    temporary = path.with_name(path.name + ".partial")
    try:
        save_file(state, temporary, metadata={METADATA_KEY: json.dumps(description)})
        os.replace(temporary, path)
    except SafetensorError as error:  # a full disk, for one
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of a file written by `save`.

    Args:
        path: the file.
        kind: what `description["kind"]` must be.

    Raises:
        CheckpointError: not a whole safetensors file, not written by `save`, of another kind, or NaN or infinity among
            the weights.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if METADATA_KEY not in metadata:
                raise CheckpointError(
                    f"{path} has no {METADATA_KEY!r} description in its metadata: it was not written by this package"
                )
            description = json.loads(metadata[METADATA_KEY])
            if not isinstance(description, dict):
                raise CheckpointError(
                    f"{path}: the description in the metadata must be a mapping, got {type(description).__name__}"
                )
            if description.get("kind") != kind:
                raise CheckpointError(f"{path} holds a {description.get('kind')!r}, expected a {kind!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    check_finite(tensors, path)
    return description, {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def find(name_or_path: str | os.PathLike[str], packaged: dict[str, Path], what: str) -> Path:
    """The file of a packaged name, or the path itself. Raises CheckpointError that lists the packaged names."""
    path = packaged.get(str(name_or_path), Path(name_or_path))
    if not path.is_file() and path.suffix != ".safetensors":
        raise CheckpointError(
            f"no {what} {str(name_or_path)!r}: packaged are {', '.join(packaged) or 'none'}; else give a .safetensors"
            " path"
        )
    if not path.is_file():
        raise CheckpointError(f"no weight file at {path}")
    return path


def build_with(make: Callable[[], Module], tensors: dict[str, Tensor], path: str | os.PathLike[str]) -> Module:
    """The module that `make` builds, on the CPU, with exactly `tensors` as its state, converted to its types; its
    random initialisation is skipped.

    Raises:
        CheckpointError: names missing, unexpected and misshapen tensors.
    """
    with torch.device("meta"), _at_most(len(tensors) + _SPARE, path):
        module = make()
    state = module.state_dict()
    check_names(state, tensors, path, "the architecture")
    if any(name not in state for name, _ in module.named_buffers()):
        module = make()  # buffers that no file holds are computed by the constructor
    else:
        module = module.to_empty(device="cpu")
    module.load_state_dict(tensors, strict=True)
    return module


@contextmanager
def _at_most(parameters: int, path: str | os.PathLike[str]) -> Iterator[None]:
    """Ends the building of a network with CheckpointError as soon as it has more parameters than the file can fill: a
    description may ask for anything.
    """
    left = parameters

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise CheckpointError(
                f"{path}: the weights do not fit the architecture; it has more than {parameters:,} parameters, the file"
                " fewer tensors"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_names(
    expected: dict[str, Tensor], tensors: dict[str, Tensor], path: str | os.PathLike[str], what: str
) -> None:
    """Raises CheckpointError that names the first tensors that are missing, unexpected or of another shape."""
    missing, unexpected = (
        [name for name in expected if name not in tensors],
        [name for name in tensors if name not in expected],
    )
    misshapen = [
        f"{name} {tuple(t.shape)}, expected {tuple(expected[name].shape)}"
        for name, t in tensors.items()
        if t.shape != expected.get(name, t).shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(f"{path}: the weights do not fit {what}; {'; '.join(problems)}")


_SPARE = 1000  # so that a file that lacks some tensors is told which
_NAMED = 5


def check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises CheckpointError that names the first tensor with NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{path}: tensor {name!r} holds NaN or infinity as {tensor.dtype}")
