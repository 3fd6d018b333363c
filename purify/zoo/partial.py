"""The files beside a download: what has come of it, what the server said of it, and the checksum that it had."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import requests

CHUNK = 2**16  # bytes; what of a piece has come when a connection breaks is lost


class DownloadError(ValueError):
    """A download that did not succeed; the message names the address and says what to do."""


def recorded_sha256(target: Path) -> str | None:
    """What TARGET.sha256 says, None where there is none."""
    record = record_path(target)
    found = re.match(r"[0-9a-f]{64}\b", record.read_text()) if record.is_file() else None
    return found.group() if found else None


def checksums(file: BinaryIO) -> dict[str, str]:
    """SHA-256 and MD5 of the rest of an open file."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in ("sha256", "md5")}
    while chunk := file.read(CHUNK):
        for digest in digests.values():
            digest.update(chunk)
    return {name: digest.hexdigest() for name, digest in digests.items()}


@contextmanager
def partial(target: Path) -> Iterator[BinaryIO]:
    """The partial file, open and locked, so that one process at a time writes to it; gone afterwards if it is empty or
    has been moved.
    """
    path = partial_path(target)
    while True:
        file = open(path, "ab+")  # noqa: SIM115 (closed below)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise DownloadError(f"{target}: another process is downloading it") from error
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            break
        file.close()  # another process finished between opening and locking
    try:
        yield file
    finally:
        file.flush()
        if path.exists() and os.fstat(file.fileno()).st_size == 0:
            path.unlink()
        if not path.exists():
            state_path(target).unlink(missing_ok=True)
        file.close()


def make_folders(folder: Path) -> list[Path]:
    """Makes the folder and its parents; returns those that were not there, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"{folder} cannot be made: {error.strerror}") from error
    return missing[::-1]


def partial_path(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def state_path(target: Path) -> Path:
    return target.with_name(target.name + ".partial.json")


def record_path(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def where_from(target: Path, expected: str) -> str:
    """Whether an expectation is only what an earlier download was like, and how to take it back."""
    if recorded_sha256(target) != expected:
        return ""
    return (
        f" (that of an earlier download, recorded in {record_path(target)}; if that one was wrong, delete the record)"
    )


def write_record(target: Path, sha256: str) -> None:
    if recorded_sha256(target) != sha256:
        record_path(target).write_text(f"{sha256}  {target.name}\n")


def read_validator(target: Path, address: str) -> str | None:
    """What tells the server which version of the file the partial one belongs to, None where that is not known."""
    try:
        state = json.loads(state_path(target).read_text())
        return state["validator"] if state["address"] == address else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_validator(target: Path, address: str, response: requests.Response) -> None:
    tag = response.headers.get("ETag", "")
    validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
    state_path(target).write_text(json.dumps({"address": address, "validator": validator}))
