"""What every run needs: its folder, its environment, its progress, and names for what it depends on."""

from benchmarks.runs.environment import environment, peak_memory, pick_device
from benchmarks.runs.fingerprints import fingerprint, fingerprint_model
from benchmarks.runs.folder import RunError, locked, make_folder, write_text
from benchmarks.runs.progress import progress_bar

__all__ = [
    "RunError",
    "environment",
    "fingerprint",
    "fingerprint_model",
    "locked",
    "make_folder",
    "peak_memory",
    "pick_device",
    "progress_bar",
    "write_text",
]
