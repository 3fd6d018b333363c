"""A run's folder: new, or locked by one process; files that are never seen half written."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path


class RunError(ValueError):
    """An output folder that cannot be used."""


def make_folder(out: Path | None, kind: str) -> Path:
    """A new or empty folder for a run: `out`, or a new runs/KIND-DATE-TIME that no other run has.

    Raises:
        RunError: the folder holds something already, or cannot be written.
    """
    if out is None:
        Path("runs").mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{kind}-{datetime.now():%Y%m%d-%H%M%S}-", dir="runs"))
    if out.is_dir() and any(out.iterdir()):
        raise RunError(f"--out {out} already holds files: an existing run is never overwritten, give another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(f"--out {out} cannot be written: {error.strerror}") from error
    return out


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a run's folder; the lock ends with the process. Raises RunError where one is at
    work.
    """
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"--out {folder}: another process is running there") from error
        yield


def check_identity(path: Path, found: str, expected: str) -> None:
    """Raises RunError where a batch's file was made by another run than the one that would go on with it."""
    if found != expected:
        raise RunError(f"{path} was made with another configuration, other weights, images or code; give another --out")


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a run that dies, sees the old or the new contents, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
