from .environment import environment, peak_memory, pick_device
from .fingerprints import fingerprint, fingerprint_model
from .folder import RunError, locked, make_folder, write_text
from .progress import progress_bar

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
