"""Downloads that end in the right file or in none: resumed, bounded, checked, and moved into place at the end.

While a download runs, or waits to be resumed, TARGET.partial holds what has come and TARGET.partial.json what the
server said of it.
"""

import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import requests
from urllib3.exceptions import HTTPError, NewConnectionError

from purify.zoo.partial import (
    CHUNK,
    checksums,
    make_folders,
    partial,
    partial_path,
    read_validator,
    recorded_sha256,
    where_from,
    write_record,
    write_validator,
)
from purify.zoo.partial import (
    DownloadError as DownloadError,
)

Progress = Callable[[int, int | None], None]
"""progress(bytes here, bytes expected or None)."""

_TIMEOUT = (15.0, 60.0)  # seconds: to connect, and between two pieces
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 30.0
_WEB_PAGE = (
    "answers with a web page, not with the file: Google Drive does so when too many people fetched a file today, others"
    " when a login or a confirmation is needed. Try again tomorrow, or in a browser"
)


class _Dropped(Exception):
    """Something that may pass."""


def address_of(source: str) -> str:
    """The address of a source: itself, or for gdrive:ID that of the file on Google Drive."""
    if source.startswith("gdrive:"):
        return f"https://drive.usercontent.google.com/download?id={source.removeprefix('gdrive:')}&export=download&confirm=t"
    return source


def download(
    address: str,
    target: str | os.PathLike[str],
    *,
    size: int | None = None,
    sha256: str | None = None,
    md5: str | None = None,
    progress: Progress | None = None,
    retries: int = 5,
    limit: int = 20 * 2**30,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Fetches `address` into `target`, going on with what an earlier call left.

    Args:
        address: http or https.
        target: the file; must not exist. Its folder is made where missing.
        size: expected bytes.
        sha256: expected, hexadecimal; by default what TARGET.sha256 says, where an earlier download recorded it.
        md5: expected, hexadecimal.
        progress: called after every piece.
        retries: dropped connections in a row without a new byte that are tolerated.
        limit: most bytes, where `size` is not given.
        sleep: waits between retries, in seconds.

    Returns:
        The file's SHA-256, which is recorded in TARGET.sha256.

    Raises:
        DownloadError: not reachable, refused, a web page in place of the file, another size or checksum, no space, or
            another process at work on the same file. Nothing is left behind but, where the transfer can be resumed, the
            partial file.
    """
    target = Path(target)
    if target.exists():
        raise DownloadError(f"{target} is already there: an existing file is never overwritten")
    made = make_folders(target.parent)
    try:
        with partial(target) as file:
            job = _Job(address, target, file, size, sha256 or recorded_sha256(target), md5, progress, limit)
            job.run(retries, sleep)
            return job.finish()
    except OSError as error:
        raise DownloadError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        for folder in reversed(made):
            if not any(folder.iterdir()):
                folder.rmdir()


def check_file(path: Path, size: int | None = None, sha256: str | None = None, md5: str | None = None) -> str:
    """The SHA-256 of a file that is as expected; one that was not known is recorded in PATH.sha256, and expected from
    then on.

    Raises:
        DownloadError: another size or checksum.
    """
    real = path.stat().st_size
    if size is not None and real != size:
        raise DownloadError(f"{path} has {real:,} bytes, expected {size:,}: delete it and fetch it again")
    with open(path, "rb") as file:
        digests = checksums(file)
    for name, expected in (("sha256", sha256 or recorded_sha256(path)), ("md5", md5)):
        if expected not in (None, digests[name]):
            raise DownloadError(
                f"{path} has the {name} {digests[name]}, expected {expected}{where_from(path, expected)}: delete it"
                " and fetch it again"
            )
    write_record(path, digests["sha256"])
    return digests["sha256"]


@dataclass
class _Job:
    """One download: the open partial file and what is known of the whole."""

    address: str
    target: Path
    file: BinaryIO
    size: int | None
    sha256: str | None
    md5: str | None
    progress: Progress | None
    limit: int
    here: int = 0
    total: int | None = None
    answered: bool = False

    def run(self, retries: int, sleep: Callable[[float], None]) -> None:
        """Transfers, again and again while there is progress."""
        self.here = self.file.seek(0, os.SEEK_END)
        best, failures = self.here, 0
        while True:
            try:
                self._transfer()
                return
            except _Dropped as error:
                failures = 0 if self.here > best else failures + 1
                best = max(best, self.here)
                if failures > retries:
                    raise DownloadError(
                        f"{self.address}: {error}; gave up after {retries} retries. {self._by_hand()}"
                    ) from error
                sleep(min(2.0**failures, _LONGEST_WAIT))

    def finish(self) -> str:
        """Checks what is on the disk, and moves it into place."""
        if self.here == 0:
            raise DownloadError(f"{self.address} gave an empty file. {self._by_hand()}")
        self.file.seek(0)
        digests = checksums(self.file)
        for name, expected in (("sha256", self.sha256), ("md5", self.md5)):
            if expected not in (None, digests[name]):
                came = self.here
                self._reset()
                raise DownloadError(
                    f"{self.address} gave {came:,} bytes with the {name} {digests[name]}, expected"
                    f" {expected}{where_from(self.target, expected)}; they were deleted"
                )
        os.fsync(self.file.fileno())
        os.replace(partial_path(self.target), self.target)
        write_record(self.target, digests["sha256"])
        return digests["sha256"]

    def _transfer(self) -> None:
        validator = read_validator(self.target, self.address)
        if self.here and validator is None:
            self._reset()
        headers = {"Accept-Encoding": "identity"}
        if self.here and validator:
            headers |= {"Range": f"bytes={self.here}-", "If-Range": validator}
        try:
            with requests.get(self.address, headers=headers, stream=True, timeout=_TIMEOUT) as response:
                if self._begin(response):
                    # bytes as they are, whatever encoding a server claims for them
                    for chunk in response.raw.stream(CHUNK, decode_content=False):
                        self._write(chunk)
        except requests.exceptions.SSLError as error:
            raise DownloadError(f"{self.address}: the connection is not trusted: {error}. {self._by_hand()}") from error
        except requests.exceptions.ConnectionError as error:
            reason = getattr(error.args[0], "reason", None) if error.args else None
            unreachable = isinstance(reason, NewConnectionError) or isinstance(
                error, requests.exceptions.ProxyError | requests.exceptions.ConnectTimeout
            )
            if unreachable and not self.answered:
                raise DownloadError(
                    f"{self.address} cannot be reached: is this machine online? {self._by_hand()}"
                ) from error
            raise self._dropped() from error
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.Timeout, HTTPError) as error:
            raise self._dropped() from error
        except requests.exceptions.RequestException as error:
            raise DownloadError(f"{self.address} cannot be fetched: {error}. {self._by_hand()}") from error
        if self.total is not None and self.here < self.total:
            raise self._dropped()
        if self.size is not None and self.here != self.size:
            came = self.here
            self._reset()
            raise DownloadError(f"{self.address} gave {came:,} bytes, expected {self.size:,}; they were deleted")

    def _dropped(self) -> _Dropped:
        return _Dropped(
            f"the connection was lost after {self.here:,} of"
            f" {'an unknown number of' if self.total is None else f'{self.total:,}'} bytes"
        )

    def _begin(self, response: requests.Response) -> bool:
        """Reads the answer's head: where the content starts, how long it is, whether it can be what is wanted. False
        where nothing is missing.
        """
        self.answered = True
        if self.address.startswith("https:") and not response.url.startswith("https:"):
            raise DownloadError(f"{self.address} leads to {response.url}, which is not encrypted. {self._by_hand()}")
        if response.status_code in _PASSING:
            raise _Dropped(f"the server answers {response.status_code} {response.reason}")
        if response.status_code == 416:  # asked for bytes after the last one, of a file that has not changed
            if response.headers.get("Content-Range") == f"bytes */{self.here}":
                self.total = self.here
                return False
            self._reset()
            raise _Dropped("the server has less than what was here")
        if response.status_code not in (200, 206):
            raise DownloadError(f"{self.address} answers {response.status_code} {response.reason}. {self._by_hand()}")
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise DownloadError(f"{self.address} {_WEB_PAGE}. {self._by_hand()}")
        length = response.headers.get("Content-Length", "")
        if response.status_code == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if span is None or int(span.group(1)) != self.here:
                self._reset()
                raise _Dropped("the server sent another part than asked for")
            self.total = int(span.group(2))
        else:
            self._reset()
            self.total = int(length) if length.isdigit() else None
            write_validator(self.target, self.address, response)
        expected = self.total if self.total is not None else self.size
        if self.total is not None and self.size is not None and self.total != self.size:
            raise self._refusal(f"{self.address} offers {self.total:,} bytes, expected {self.size:,}")
        if expected is not None and expected > self._most():
            raise self._refusal(f"{self.address} offers {expected:,} bytes, expected at most {self._most():,}")
        free = shutil.disk_usage(self.target.parent).free
        if expected is not None and expected - self.here > free:
            raise DownloadError(f"{self.target} needs {expected - self.here:,} bytes more, and {free:,} are free there")
        return True

    def _write(self, chunk: bytes) -> None:
        if self.here + len(chunk) > self._most():
            raise self._refusal(f"{self.address} sends more than {self._most():,} bytes")
        if self.here == 0 and chunk.lstrip()[:14].lower().startswith((b"<!doctype", b"<html")):
            raise self._refusal(f"{self.address} {_WEB_PAGE}")
        self.file.write(chunk)
        self.here += len(chunk)
        if self.progress is not None:
            self.progress(self.here, self.total if self.total is not None else self.size)

    def _most(self) -> int:
        return self.limit if self.size is None else self.size

    def _refusal(self, text: str) -> DownloadError:
        self._reset()
        return DownloadError(f"{text}; nothing is kept of it. {self._by_hand()}")

    def _reset(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.here = 0

    def _by_hand(self) -> str:
        return f"The file can be put at {self.target} by hand."
