"""`purify models`: what is known, fetched, checked, converted and looked into. Functions return what is printed."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

from benchmarks import config as configs
from benchmarks.classifiers import source_module
from benchmarks.runs.progress import console
from purify.score.model import ScoreModel
from purify.zoo import KIND, archive, checkpoint, load_score_model, packaged_score_models, registry, save_score_model
from purify.zoo.checkpoint import CheckpointError
from purify.zoo.download import DownloadError, address_of, check_file, download
from purify.zoo.folders import models_folder
from purify.zoo.inspect_file import FileInfo, fitting_entries, inspect
from purify.zoo.registry import Entry

ZOOS = ("robustbench", "torchvision", "timm")
"""Zoos of classifiers whose weights have an address that a program can fetch."""

_SHOWN = 6
_PACKAGED_LICENCE = "MIT"  # as purify/zoo/weights/README.md says


class ModelsError(ValueError):
    """A name, file or option that a command cannot use."""


class Wanted(NamedTuple):
    """One file to download: where it goes, from which sources, what is known of it, and what people do where there is
    no source.
    """

    target: Path
    sources: tuple[str, ...]
    by_hand: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Known:
    """A packaged score model or an entry of the registry: its size in bytes where it is known, whether it is here
    ("packaged", "yes", "no"), and the packaged configurations that use it.
    """

    name: str
    kind: str
    size: int | None
    here: str
    licence: str
    used_by: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What `verify` found of one entry: "ok", "FAIL", or "unchecked" where this package does not load such files."""

    name: str
    state: str
    text: str


def known() -> list[Known]:
    """The packaged score models and every entry of the registry, and which packaged configurations name them."""
    packaged = [
        Known(name, "score", file.stat().st_size, "packaged", _PACKAGED_LICENCE, tuple(used_by(name)))
        for name, file in packaged_score_models().items()
    ]
    entries = [
        Known(
            entry.name,
            entry.kind,
            entry.size,
            "yes" if registry.is_here(entry) else "no",
            entry.licence,
            tuple(used_by(entry.name)),
        )
        for entry in registry.entries().values()
    ]
    return packaged + entries


def overview(models: Sequence[Known]) -> Table:
    """A table of `known()`."""
    whole = [Column(name, no_wrap=True) for name in ("name", "kind", "size", "here")]
    table = Table(
        *whole, "licence", "used by", title=f"models in {models_folder()}; configurations that use them, by folder"
    )
    for model in models:
        folders = Counter(name.partition("/")[0] for name in model.used_by)
        table.add_row(
            model.name,
            model.kind,
            "unknown" if model.size is None else _bytes(model.size),
            model.here,
            model.licence,
            ", ".join(f"{count} {folder}" for folder, count in folders.items()),
        )
    return table


def used_by(name: str) -> list[str]:
    """The packaged configurations whose score model it is."""
    folder = configs.configs_folder()
    experiments = {
        str(file.relative_to(folder).with_suffix("")): configs.read(file).get("score")
        for file in sorted(folder.rglob("*.yaml"))
    }
    return [
        config
        for config, score in experiments.items()
        if name in (score, score.get("name") if isinstance(score, dict) else None)
    ]


def fetch(names: Sequence[str], say: Callable[[str], None]) -> dict[str, list[Path]]:
    """Downloads what is not here yet, and unpacks data archives. All names are looked up before anything is downloaded.

    Args:
        names: of the registry, or of a classifier: "robustbench:DATASET/THREAT/NAME", "torchvision:NAME",
            "torchvision:NAME/VERSION", "timm:NAME".
        say: told what was done.

    Returns:
        For each name where it is now; for weights that are still to be exported, the downloaded files.

    Raises:
        ModelsError, RegistryError: an unknown name.
        DownloadError, ArchiveError: what did not come, or was not as expected.
    """
    entries = {name: None if name.partition(":")[0] in ZOOS else registry.find(name) for name in names}
    jobs = {name: _classifier_files(name) if entry is None else _files(entry) for name, entry in entries.items()}
    for name, entry in entries.items():
        if entry is not None and registry.is_here(entry):
            say(f"{name}: is here, {registry.path_of(entry)}")
            continue
        for wanted in jobs[name]:
            _fetch_file(wanted, say)
        if entry is None:
            continue
        if entry.unpack:
            archive.extract(jobs[name][0].target, registry.path_of(entry), inside=entry.unpack)
        say(
            f"{name}: export the weights to {registry.path_of(entry)}. {entry.note}"
            if entry.export
            else f"{name}: {registry.path_of(entry)}"
        )
    return {
        name: [registry.path_of(entry)]
        if entry and registry.is_here(entry)
        else [wanted.target for wanted in jobs[name]]
        for name, entry in entries.items()
    }


def verify(names: Sequence[str]) -> list[Verdict]:
    """Size, checksum and, of score models, a strict load with finite weights; by default of all of the registry that is
    here.

    `names` as for `fetch`; of classifiers the checksum recorded when they were fetched, and the one in torchvision's
    file names.
    """
    if names:
        return [_verify_named(name) for name in names]
    entries = registry.entries().values()
    return [
        _verify(entry)
        for entry in entries
        if registry.is_here(entry) or any(path.exists() for _, path in registry.downloads_of(entry))
    ]


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
    return [f"{out}: {_bytes(out.stat().st_size)}, {architecture}, weights as {dtype}, read again and compared"]


def look_into(path: Path) -> tuple[Path, FileInfo]:
    """A file, or the file of a packaged name, and what it holds, without loading its tensors."""
    path = packaged_score_models().get(str(path), path)
    return path, inspect(path)


def info_lines(path: Path, found: FileInfo) -> list[str]:
    """Lines that say what `look_into` found."""
    lines = [f"{path}: {found.format}, {_bytes(found.size)}"]
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


def _files(entry: Entry) -> list[Wanted]:
    return [
        Wanted(path, file.sources, registry.how_to_get(entry), file.size, file.sha256, file.md5)
        for file, path in registry.downloads_of(entry)
    ]


def _classifier_files(name: str) -> list[Wanted]:
    source, _, rest = name.partition(":")
    zoo, parts = source_module(source), rest.split("/")
    if len(parts) not in {"robustbench": (3,), "torchvision": (1, 2), "timm": (1,)}[source]:
        forms = {
            "robustbench": "DATASET/THREAT/NAME, for instance cifar10/Linf/Standard",
            "torchvision": "NAME or NAME/VERSION",
            "timm": "NAME",
        }
        raise ModelsError(f"{name!r}: {source}: is followed by {forms[source]}")
    if source != "robustbench":
        path, address = zoo.torchvision_source(*parts) if source == "torchvision" else zoo.timm_source(*parts)
        return [Wanted(path, (address,), "")]
    files, address = zoo.robustbench_source(*parts), zoo.library_address(*parts)
    origins = [f"gdrive:{gdrive_id}" for gdrive_id in files.gdrive_ids] if address is None else [address]
    return [Wanted(path, (origin,), "") for path, origin in zip(files.files, origins, strict=True)]


def _fetch_file(wanted: Wanted, say: Callable[[str], None]) -> None:
    """One file from the first source that gives it; what is here already is checked in its place."""
    if wanted.target.exists():
        check_file(wanted.target, wanted.size, wanted.sha256, wanted.md5)
        return
    if not wanted.sources:
        raise DownloadError(f"{wanted.target.name} has no address that a program can fetch: {wanted.by_hand}")
    problems = []
    for source in wanted.sources:
        try:
            with _bar(wanted.target.name) as progress:
                sha256 = download(
                    address_of(source),
                    wanted.target,
                    size=wanted.size,
                    sha256=wanted.sha256,
                    md5=wanted.md5,
                    progress=progress,
                )
            known = "as expected" if wanted.sha256 or wanted.md5 else "recorded now, and checked from now on"
            say(f"{wanted.target.name}: {_bytes(wanted.target.stat().st_size)}, SHA-256 {sha256}, {known}")
            return
        except DownloadError as error:
            problems.append(str(error))
    raise DownloadError("\n".join(problems))


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yields a callback for `download`: a live bar on a terminal; elsewhere the line that `fetch` says at the end is
    enough.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _verify_named(name: str) -> Verdict:
    if name.partition(":")[0] in ZOOS:
        return _verify_classifier(name)
    return _verify_packaged(name) if name in packaged_score_models() else _verify(registry.find(name))


def _verify_packaged(name: str) -> Verdict:
    try:
        model = load_score_model(name)
    except CheckpointError as error:
        return Verdict(name, "FAIL", str(error))
    return Verdict(
        name, "ok", f"packaged, strict load: {sum(parameter.numel() for parameter in model.parameters()):,} parameters"
    )


def _verify(entry: Entry) -> Verdict:
    try:
        for file, path in registry.downloads_of(entry):
            if path.exists() or not (entry.export or entry.unpack):
                check_file(path, file.size, file.sha256, file.md5)
        if not registry.is_here(entry):
            return Verdict(
                entry.name, "FAIL", f"nothing to load at {registry.path_of(entry)}: {registry.how_to_get(entry)}"
            )
        if entry.kind != "score":
            return Verdict(entry.name, "ok", "size and checksum")
        if entry.export:
            check_file(registry.path_of(entry))
        model = _load_entry(entry)
    except (CheckpointError, DownloadError, FileNotFoundError) as error:
        return Verdict(entry.name, "FAIL", str(error))
    except ValueError as error:
        return Verdict(entry.name, "unchecked", f"size and checksum are right; not loaded: {error}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Verdict(entry.name, "ok", f"size, checksum, strict load: {parameters:,} parameters")


def _verify_classifier(name: str) -> Verdict:
    try:
        for wanted in _classifier_files(name):
            sha256 = check_file(wanted.target)
            prefix = re.search(r"-([0-9a-f]{8,64})\.pth$", wanted.target.name)  # torch.hub's convention
            if prefix and not sha256.startswith(prefix.group(1)):
                return Verdict(
                    name,
                    "FAIL",
                    f"{wanted.target} has the SHA-256 {sha256}, not the one that its name begins with: delete it and"
                    " fetch it again",
                )
    except (DownloadError, FileNotFoundError) as error:
        return Verdict(name, "FAIL", str(error))
    return Verdict(name, "ok", "checksum as recorded")


def _load_entry(entry: Entry) -> ScoreModel:
    if entry.config is None:
        return load_score_model(registry.path_of(entry))
    return load_score_model(registry.path_of(entry), entry.architecture, entry.config)


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


def _bytes(count: int) -> str:
    return f"{count / 10**6:,.1f} MB"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 300 else text[:297] + "..."
