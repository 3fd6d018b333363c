"""`purify models info`: what a file holds."""

from pathlib import Path
from typing import Any

from benchmarks.experiments.models.names import megabytes
from purify.zoo import packaged_score_models
from purify.zoo.inspect_file import FileInfo, fitting_entries, inspect

_SHOWN = 6


def look_into(path: Path) -> tuple[Path, FileInfo]:
    """A file, or the file of a packaged name, and what it holds, without loading its tensors."""
    path = packaged_score_models().get(str(path), path)
    return path, inspect(path)


def info_lines(path: Path, found: FileInfo) -> list[str]:
    """Lines that say what `look_into` found."""
    lines = [f"{path}: {found.format}, {megabytes(found.size)}"]
    if found.imports:
        return [*lines, "not opened: it would import and may call", *(f"  {name}" for name in found.imports)]
    if found.description is not None:
        lines += ["description", *(f"  {key}: {_short(value)}" for key, value in found.description.items())]
    lines += [f"{key}: {_short(value)}" for key, value in found.metadata.items()]
    lines += found.layout
    if found.has_average:
        lines.append("holds a moving average of the weights, which is what gets loaded")
    if found.has_optimizer:
        lines.append("holds the state of an optimiser, which is not loaded")
    return lines + _tensor_lines(found)


def info(path: Path) -> list[str]:
    """Lines that say what a file, or the file of a packaged name, holds."""
    return info_lines(*look_into(path))


def _tensor_lines(found: FileInfo) -> list[str]:
    if not found.tensors:
        return ["no named tensors"]
    parameters = sum(tensor.numel for tensor in found.tensors)
    types = sorted({tensor.dtype for tensor in found.tensors})
    lines = [f"{len(found.tensors)} tensors, {parameters:,} numbers, {', '.join(types)}; the first:"]
    lines += [f"  {tensor.name} {tensor.shape} {tensor.dtype}" for tensor in found.tensors[:_SHOWN]]
    if found.description is not None:
        return lines
    fitting = fitting_entries(found.tensors)
    return [*lines, f"names and shapes are those of: {', '.join(fitting) or 'no network in the registry'}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 300 else text[:297] + "..."
