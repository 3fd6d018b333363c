"""Unpacks archives from strangers: nothing outside the folder, no links, no devices, no more than was agreed, all or
nothing.
"""

import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

_CHUNK = 2**20
_BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    ArithmeticError, EOFError, OSError, LookupError, RuntimeError, ValueError
)  # fmt: skip


class ArchiveError(ValueError):
    """An archive that is not unpacked; the message names it and the entry, and says why."""


def extract(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    limit_bytes: int = 2**32,
    limit_files: int = 100_000,
    inside: str | None = None,
) -> None:
    """Unpacks a .zip, .tar or .tar.gz into a new folder, which appears when all is written; owners and permissions are
    not taken over.

    Args:
        archive: the file.
        folder: must not exist; its parent must.
        limit_bytes: most bytes of all files together; no file gets more than its entry declares.
        limit_files: most entries.
        inside: only this top folder of the archive, which becomes `folder`; by default everything.

    Raises:
        ArchiveError: not a whole archive; an entry with an absolute path, "..", a link or a device; more than the
            limits; no folder `inside`; `folder` is there already. Nothing is left behind.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists():
        raise ArchiveError(f"{folder} is already there: an existing folder is never overwritten")
    if not archive.is_file():
        raise ArchiveError(f"no archive at {archive}")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        content = Path(temporary) / "content"
        content.mkdir()
        try:
            _unpack(archive, content, limit_bytes, limit_files)
        except ArchiveError:
            raise
        except _BROKEN as error:
            raise ArchiveError(f"{archive} cannot be unpacked: {type(error).__name__}: {error}") from error
        wanted = content / inside if inside else content
        if not wanted.is_dir():
            found = ", ".join(sorted(path.name for path in content.iterdir())[:10])
            raise ArchiveError(f"{archive} has no folder {inside!r}; it holds {found or 'nothing'}")
        os.replace(wanted, folder)


def _unpack(archive: Path, folder: Path, limit_bytes: int, limit_files: int) -> None:
    declared = 0
    for count, (name, size, is_folder, source) in enumerate(_entries(archive, limit_bytes, limit_files), start=1):
        if count > limit_files:
            raise ArchiveError(f"{archive} holds more than {limit_files:,} entries")
        target = _inside(folder, name, archive)
        if is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        declared += size
        if declared > limit_bytes:
            raise ArchiveError(
                f"{archive} declares {declared:,} bytes up to {name!r}, expected at most {limit_bytes:,}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with source, open(target, "xb") as file:
            shutil.copyfileobj(source, file, _CHUNK)  # ends at the declared size


def _inside(folder: Path, name: str, archive: Path) -> Path:
    """The entry's path in `folder`. Raises ArchiveError for a name that could lead out of it on some system."""
    parts = name.rstrip("/").split("/")
    if name.startswith("/") or ".." in parts or any(character in name for character in "\\:\0") or not name:
        raise ArchiveError(f"{archive}: the entry {name!r} would be written outside the folder, or has no plain name")
    return folder.joinpath(*parts)


def _entries(archive: Path, limit_bytes: int, limit_files: int) -> Iterator[tuple[str, int, bool, IO[bytes]]]:
    """(name, declared size, whether a folder, content) of every entry, in order; contents are read before the next
    entry.
    """
    with open(archive, "rb") as file:
        start = file.read(4)
    if start.startswith(b"PK"):
        yield from _zip_entries(archive)
        return
    with open(archive, "rb") as file, gzip.GzipFile(fileobj=file) if start.startswith(b"\x1f\x8b") else file as plain:
        yield from _tar_entries(archive, _Bounded(plain, limit_bytes + 4096 * (limit_files + 16)))


def _zip_entries(archive: Path) -> Iterator[tuple[str, int, bool, IO[bytes]]]:
    with zipfile.ZipFile(archive) as content:
        for entry in content.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"{archive}: the entry {entry.filename!r} is a link or a device")
            yield entry.filename, entry.file_size, entry.is_dir(), content.open(entry)


def _tar_entries(archive: Path, file: "_Bounded") -> Iterator[tuple[str, int, bool, IO[bytes]]]:
    with tarfile.open(fileobj=file, mode="r:") as content:  # type: ignore[call-overload]
        for entry in content:
            source = content.extractfile(entry) if entry.isreg() else None
            if source is None and not entry.isdir():
                raise ArchiveError(f"{archive}: the entry {entry.name!r} is a link or a device")
            if entry.size < 0 or entry.issparse():
                raise ArchiveError(f"{archive}: the entry {entry.name!r} declares {entry.size:,} bytes, or holes")
            yield entry.name, entry.size, entry.isdir(), source or io.BytesIO()


class _Bounded:
    """A stream for `tarfile` that ends in ArchiveError where more is asked for than can be right: its headers declare
    their own sizes.
    """

    def __init__(self, file: BinaryIO | io.BufferedIOBase, limit: int):
        self.file, self.limit = file, limit

    def read(self, count: int) -> bytes:
        self._check(self.file.tell() + count, count)
        return self.file.read(count)

    def seek(self, position: int, whence: int = 0) -> int:
        assert whence == 0
        self._check(position, 0)
        return self.file.seek(position)

    def tell(self) -> int:
        return self.file.tell()

    def _check(self, position: int, count: int) -> None:
        if position > self.limit or count > _CHUNK:
            raise ArchiveError(f"the archive unpacks to more than {self.limit:,} bytes, or has a header of {count:,}")
