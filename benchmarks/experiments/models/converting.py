"""`purify models convert`: averaged weights as one file that describes itself."""

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments.models.names import ModelsError, megabytes
from purify.score.model import ScoreModel
from purify.zoo import KIND, checkpoint, load_score_model, registry, save_score_model
from purify.zoo.checkpoint import CheckpointError
from purify.zoo.inspect_file import fitting_entries, inspect


def convert(source: str, out: Path, architecture: str | None, config: str | None, dtype: str) -> list[str]:
    """Writes a score model with its averaged weights as safetensors that describe themselves, and reads them again to
    compare.

    Args:
        source: a registry name, or a path.
        out: the new file.
        architecture: of a path: a name in `purify.networks.ARCHITECTURES`.
        config: of a path: a JSON file with the official configuration, or the registry name of an entry whose
            architecture and configuration fit.
        dtype: "float16" or "float32".

    Raises:
        ModelsError: an option that is missing or wrong, or a file that exists; nothing is written.
        CheckpointError: weights that cannot be used, or do not fit into `dtype`.
    """
    if dtype not in ("float16", "float32"):
        raise ModelsError(f"--dtype {dtype!r} is not one of float16, float32")
    if out.suffix != ".safetensors":
        raise ModelsError(f"{out} must end in .safetensors")
    if out.exists():
        raise ModelsError(f"{out} already exists: an existing file is never overwritten")
    model, architecture, settings = _load(source, architecture, config)
    wanted: torch.dtype = getattr(torch, dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_score_model(out, model, architecture, settings, wanted)
        written = load_score_model(out, check=False).network.state_dict()
        for name, tensor in model.network.state_dict().items():
            expected = tensor.to(wanted).float() if tensor.is_floating_point() else tensor
            if not torch.equal(written[name], expected):
                raise CheckpointError(f"{out}: tensor {name!r} was not read back as it was written")
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    return [f"{out}: {megabytes(out.stat().st_size)}, {architecture}, weights as {dtype}, read again and compared"]


def _load(source: str, architecture: str | None, config: str | None) -> tuple[ScoreModel, str, dict[str, Any]]:
    """The model with its architecture and configuration, from the registry, the options, or the file itself."""
    entry = registry.entries().get(source) or registry.entries().get(config or "")
    if source in registry.entries() and (architecture or config):
        raise ModelsError(f"--architecture and --config go with a path; {source!r} is in the registry, which has both")
    if entry is not None:
        if entry.architecture is None or entry.config is None:
            raise ModelsError(f"{entry.name!r} has no architecture of this package: it is used as it is")
        path = registry.path_of(entry) if entry.name == source else Path(source)
        if entry.name == source and not registry.is_here(entry):
            raise ModelsError(f"{source}: nothing at {path}: {registry.how_to_get(entry)}")
        return load_score_model(path, entry.architecture, entry.config), entry.architecture, entry.config
    if architecture is not None and config is not None:
        settings = _read_json(Path(config))
        return load_score_model(source, architecture, settings), architecture, settings
    if architecture is not None or config is not None:
        raise ModelsError("--architecture and --config go together; or --config is the name of a registry entry")
    found = inspect(Path(source))
    if found.description is not None:
        description, _ = checkpoint.read(source, KIND)
        return load_score_model(source), description["architecture"], description["config"]
    names = fitting_entries(found.tensors)
    hint = (
        f"names and shapes are those of --config {' or '.join(names)}"
        if names
        else "no network in the registry has its names and shapes"
    )
    raise ModelsError(
        f"{source} does not say what network it belongs to: --architecture and --config are needed ({hint})"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelsError(
            f"--config {path} is neither a readable JSON file nor a name in the registry: {error}"
        ) from error
    if not isinstance(content, dict):
        raise ModelsError(f"--config {path} must hold a mapping, got {type(content).__name__}")
    return content
