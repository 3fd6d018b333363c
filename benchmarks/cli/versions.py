"""`purify --version`."""

import platform
from importlib.metadata import PackageNotFoundError, version

import purify

BELOW = ("torch", "torchvision", "torchsde", "torchdiffeq", "robustbench", "pyautoattack", "timm", "numpy", "scipy")
"""Packages whose version can change a number."""


def versions(all_of_them: bool) -> dict[str, str]:
    """Package -> version, as installed, without importing any; "not installed" for those that are not there."""
    found = {"purify": purify.__version__}
    if all_of_them:
        found["python"] = platform.python_version()
        for name in BELOW:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "not installed"
    return found
