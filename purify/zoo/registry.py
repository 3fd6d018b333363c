"""The known checkpoints of the field and their data: registry.yaml, checked when it is read."""

import difflib
import os
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml
from torch import nn

from purify import networks
from purify.zoo.folders import cache_folder, models_folder
from purify.zoo.official import build_network

Kind = Literal["score", "data"]
DIFFUSERS = "diffusers"
"""The architecture of a folder whose own config.json describes the network."""


class RegistryError(ValueError):
    """An entry that is not there, or not well formed; the message names it."""


@dataclass(frozen=True)
class SourceFile:
    """One file to download.

    Args:
        name: plain file name.
        sources: addresses, or "gdrive:ID", tried in turn; none where the file is to be fetched by hand.
        size: bytes, None where not known.
        sha256: hexadecimal, None where not known.
        md5: hexadecimal, None where not known.
    """

    name: str
    sources: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None

    def __post_init__(self) -> None:
        _check(_is_file_name(self.name), f"name must be a plain file name, got {self.name!r}")
        for source in self.sources:
            _check(
                re.fullmatch(r"https://\S+|gdrive:[\w-]{20,}", str(source)),
                f"{source!r} is neither an https address nor gdrive:ID",
            )
        _check(
            self.size is None or (isinstance(self.size, int) and self.size > 0),
            f"size must be a positive number of bytes, got {self.size!r}",
        )
        for name, value, digits in (("sha256", self.sha256, 64), ("md5", self.md5, 32)):
            _check(
                value is None or re.fullmatch(rf"[0-9a-f]{{{digits}}}", str(value)),
                f"{name} must be {digits} hexadecimal digits, got {value!r}",
            )


@dataclass(frozen=True)
class Entry:
    """One checkpoint, or one data set; the fields are explained in registry.yaml."""

    name: str
    kind: Kind
    files: tuple[SourceFile, ...]
    page: str
    licence: str
    architecture: str | None = None
    config: dict[str, Any] | None = None
    paper: str | None = None
    note: str | None = None
    export: str | None = None
    unpack: str | None = None

    def __post_init__(self) -> None:
        _check(
            re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.name),
            f"a name is made of a-z, 0-9, '-' and '.', got {self.name!r}",
        )
        _check(self.kind in get_args(Kind), f"kind={self.kind!r} is not one of {', '.join(get_args(Kind))}")
        _check(
            len({file.name for file in self.files}) == len(self.files) > 0,
            "files must be a list of at least one file, all of different names",
        )
        _check(str(self.page).startswith("https://"), f"page must be an https address, got {self.page!r}")
        _check(isinstance(self.licence, str) and self.licence, f"licence must be a text, got {self.licence!r}")
        known = (*networks.ARCHITECTURES, DIFFUSERS)
        _check(
            (self.architecture is not None) == (self.kind == "score"),
            f"a {self.kind} with architecture={self.architecture!r}: score models have one",
        )
        _check(
            self.architecture is None or self.architecture in known,
            f"architecture={self.architecture!r} is not one of {', '.join(known)}",
        )
        described = self.architecture not in (None, DIFFUSERS)
        _check(
            isinstance(self.config, dict) == described,
            f"config must be a mapping where an architecture takes one, got {self.config!r}",
        )
        for name in ("export", "unpack"):
            value = getattr(self, name)
            _check(
                value is None or (_is_file_name(value) and len(self.files) == 1),
                f"{name} must be a plain name beside a single file, got {value!r}",
            )

    @property
    def size(self) -> int | None:
        """Bytes of all files together, None where one is not known."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


@cache
def entries() -> dict[str, Entry]:
    """Name -> entry, in the order of registry.yaml. Raises RegistryError for an entry that is not well formed."""
    return parse((resources.files("purify.zoo") / "registry.yaml").read_text(encoding="utf-8"))


def parse(text: str) -> dict[str, Entry]:
    """The entries of a registry's text. Raises RegistryError that names the entry."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RegistryError(f"the registry is not YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("entries"), dict):
        raise RegistryError("the registry must hold a mapping with `entries`, a mapping of names")
    found = {}
    for name, values in content["entries"].items():
        try:
            files = tuple(SourceFile(**{**file, "sources": tuple(file["sources"])}) for file in values["files"])
            found[name] = Entry(**{**values, "name": name, "files": files})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RegistryError(f"registry entry {name!r}: {error}") from error
    return found


def find(name: str) -> Entry:
    """The entry of that name. Raises RegistryError with the nearest names."""
    known = entries()
    if name in known:
        return known[name]
    near = [other for other in known if other.startswith(name)][:3] if name else []
    near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(repr(other) for other in near)}?" if near else f"known: {', '.join(known)}"
    raise RegistryError(f"no model or data set {name!r} in the registry; {hint}")


def folder_of(entry: Entry) -> Path:
    """Where the entry's downloads lie: a folder of its own among the models; data sets in $PURIFY_DATA, by default
    `data` in the cache folder.
    """
    return (
        Path(os.environ.get("PURIFY_DATA") or cache_folder() / "data")
        if entry.kind == "data"
        else models_folder() / entry.name
    )


def path_of(entry: Entry) -> Path:
    """What a loader opens: the file, the exported file, the unpacked folder, or of several files their folder. It need
    not exist.
    """
    inside = entry.export or entry.unpack or (entry.files[0].name if len(entry.files) == 1 else None)
    return folder_of(entry) / inside if inside else folder_of(entry)


def downloads_of(entry: Entry) -> list[tuple[SourceFile, Path]]:
    """Each file to download, with the path where it belongs."""
    return [(file, folder_of(entry) / file.name) for file in entry.files]


def is_here(entry: Entry) -> bool:
    """Whether a loader finds what it opens."""
    path = path_of(entry)
    if len(entry.files) > 1:
        return all(target.is_file() for _, target in downloads_of(entry))
    return path.is_dir() if entry.unpack else path.is_file()


def network_of(entry: Entry) -> nn.Module | None:
    """The entry's network on the meta device, which costs no memory; None where only its own files describe it."""
    if entry.architecture is None or entry.config is None:
        return None
    with torch.device("meta"):
        return build_network(entry.architecture, entry.config)


def how_to_get(entry: Entry) -> str:
    """One sentence or two for people: what to run, or what to download by hand and where to put it."""
    file, target = downloads_of(entry)[0]
    if not all(file.sources for file in entry.files):
        text = f"download {file.name} from {entry.page} by hand, and put it at {target}"
    else:
        text = (
            f"run `purify models fetch {entry.name}`, or put {', '.join(f.name for f in entry.files)} of {entry.page}"
            f" into {target.parent} by hand"
        )
    if entry.export:
        text += f"; then export the weights to {path_of(entry)} ({entry.note})"
    return text


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and bool(re.fullmatch(r"[\w][\w.-]*", name))


def _check(condition: Any, message: str) -> None:
    if not condition:
        raise RegistryError(message)
