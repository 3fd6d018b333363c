"""Where a run happens: its device, the versions that make its numbers, and the memory that it takes."""

import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.runs.folder import RunError


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
    for package in (
        "purify",
        "torch",
        "torchsde",
        "torchdiffeq",
        "torchvision",
        "robustbench",
        "pyautoattack",
        "numpy",
        "scipy",
    ):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    return {
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
        "system": platform.system(),
        **packages,
    }
