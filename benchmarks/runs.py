"""What every run needs: its folder, its environment, its progress."""

import fcntl
import hashlib
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

console = Console(stderr=True)


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
    """Keeps a second process out of a run's folder; the lock ends with the process. Raises RunError where one is at work."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"--out {folder}: another process is running there") from error
        yield


def pick_device(name: str | None) -> torch.device:
    """The named device, by default a GPU where there is one. Raises RunError where it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise RunError(f"--device {name!r} is not a device: expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(f"--device {name}: {torch.cuda.device_count()} CUDA devices are available here")
    return device


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No lower precision behind the caller's back, and repeatable kernels: TF32 is cuDNN's default, and autocast may be open."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False), torch.autocast(device.type, enabled=False):
        yield


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak memory so far in MiB: resident of this process, and of the allocator on a GPU."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    peaks = {"resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20}
    if device.type == "cuda":
        peaks["cuda_mib"] = torch.cuda.max_memory_allocated(device) // 2**20
    return peaks


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for provenance."""
    packages = {}
    for package in ("purify", "torch", "torchsde", "torchdiffeq", "torchvision", "robustbench", "pyautoattack", "numpy", "scipy"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    return {"python": platform.python_version(), "device": f"{device.type} ({name})", "system": platform.system(), **packages}


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Yields `update(done, note)`: a live bar with time left on a terminal, else a line every half minute."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _line_progress(title, total)
        return
    description, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    columns = (description, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), note)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


def _line_progress(title: str, total: int) -> Callable[[int, str], None]:
    started = last = time.monotonic()
    first: int | None = None

    def update(done: int, note: str = "") -> None:
        nonlocal last, first
        now = time.monotonic()
        first = done if first is None else first  # a resumed run does not start at 0
        if now - last < 30 or done == first:
            return
        last = now
        left = (now - started) * (total - done) / (done - first)
        print(f"{title}: {done}/{total}, {left / 60:.1f} min left {note}", file=sys.stderr, flush=True)

    return update


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a run that dies, sees the old or the new contents, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def fingerprint(*parts: str | bytes | Path) -> str:
    """SHA-256 of texts and of files' contents."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def fingerprint_model(module: nn.Module, *settings: str) -> str:
    """SHA-256 of a module's structure, parameters and buffers, and of what else it depends on: the same whatever file it came from."""
    digest = hashlib.sha256("\n".join((repr(module), *settings)).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
