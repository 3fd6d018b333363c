"""`purify models fetch`: weights and data downloaded, checked, and moved into place."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from benchmarks.classifiers import source_module
from benchmarks.experiments.models.names import ModelsError, megabytes
from benchmarks.runs.progress import console
from purify.zoo import archive, registry
from purify.zoo.download import DownloadError, address_of, check_file, download
from purify.zoo.registry import Entry

ZOOS = ("robustbench", "torchvision", "timm")
"""Zoos of classifiers whose weights have an address that a program can fetch."""


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
    jobs = {name: classifier_files(name) if entry is None else _files(entry) for name, entry in entries.items()}
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


def _files(entry: Entry) -> list[Wanted]:
    return [
        Wanted(path, file.sources, registry.how_to_get(entry), file.size, file.sha256, file.md5)
        for file, path in registry.downloads_of(entry)
    ]


def classifier_files(name: str) -> list[Wanted]:
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
            say(f"{wanted.target.name}: {megabytes(wanted.target.stat().st_size)}, SHA-256 {sha256}, {known}")
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
