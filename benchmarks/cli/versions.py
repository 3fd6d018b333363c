"""`purify --version`."""

import platform
from importlib.metadata import PackageNotFoundError, version

import purify
from benchmarks.cli.session import Result, Session

BELOW = ("torch", "torchvision", "torchsde", "torchdiffeq", "robustbench", "pyautoattack", "timm", "numpy", "scipy")
"""Packages whose version can change a number."""


def print_versions(session: Session) -> Result:
    """Prints, and returns, package -> version as installed, without importing any."""
    found = {"purify": purify.__version__}
    if session.verbose:
        found["python"] = platform.python_version()
        found |= {name: _installed(name) for name in BELOW}
    for name, number in found.items():
        session.print(f"{name} {number}")
    return found


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
