"""Modules under the names that they had before version 0.2: they are imported from where they are now, with a warning
that says where.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

PURIFY = {
    "adversarial_training": "training.adversarial",
    "defense": "defences",
    "diffusion_classifier": "defences.diffusion_classifier",
    "ensembles": "score.ensembles",
    "grids": "solvers.grids",
    "keyed": "defences.keyed",
    "objectives": "training.objectives",
    "parametrisation": "score.parametrisation",
    "sde": "solvers.sde",
    "smoothing": "defences.smoothed",
}
"""Old name -> new name, below `purify`."""


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of a table under their old names."""

    def __init__(self, package: str, table: Mapping[str, str]):
        self.package = package
        self.places = {f"{package}.{old}": f"{package}.{new}" for old, new in table.items()}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name in self.places else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        old, new = module.__name__, self.places[module.__name__]
        warnings.warn(f"{old} is now {new}; the old name goes with version 0.3", DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(new)  # what the import statement then hands out


def install(package: str, table: Mapping[str, str]) -> None:
    """Lets `package` answer to the old names of `table`: old -> new, below the package. Once for each package."""
    if any(isinstance(finder, _Finder) and finder.package == package for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder(package, table))
    module = sys.modules[package]
    of_today = module.__getattr__

    def attribute(name: str) -> Any:
        return importlib.import_module(f"{package}.{name}") if name in table else of_today(name)

    module.__getattr__ = attribute  # type: ignore[method-assign]
