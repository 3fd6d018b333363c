"""A user's own classifier: "module:path.to.module:factory" or "module:path/to/file.py:factory"."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from benchmarks.classifiers.request import Request, nearest


def load(request: Request) -> nn.Module:
    """What the factory returns; the user's code runs.

    Raises:
        ValueError: no such module or file, it fails, no such attribute, not callable, it raises, or it returns
            something else than a module.
    """
    name = f"module:{request.name}"
    if request.weights is not None:
        raise ValueError(f"weights={request.weights!r}: {name} loads its own weights; let the function do it")
    place, attribute = _parts(request)
    module = _from_file(place, name) if place.endswith(".py") else _by_name(place, name)
    if not hasattr(module, attribute):
        public = [entry for entry in vars(module) if not entry.startswith("_")]
        raise ValueError(
            f"{name}: {place} has no {attribute!r}; did you mean {nearest(attribute, public) or 'another module'}?"
        )
    factory = getattr(module, attribute)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ValueError(
            f"{name}: {attribute!r} is a {type(factory).__name__}, expected a function without arguments that returns a"
            " torch.nn.Module"
        )
    try:
        model = factory()
    except Exception as error:
        raise ValueError(f"{name}: {attribute}() failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{name}: {attribute}() returned a {type(model).__name__}, expected a torch.nn.Module from images in [0, 1]"
            " to logits"
        )
    return model


def _parts(request: Request) -> tuple[str, str]:
    place, _, attribute = request.name.rpartition(":")
    if not place or not attribute:
        raise ValueError(
            f"module:{request.name}: expected module:path.to.module:function or module:path/to/file.py:function"
        )
    return place, attribute


def _by_name(place: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(error.name + ".")):
            raise ValueError(f"{name}: importing {place} failed: {error}") from error
        raise ValueError(
            f"{name}: no module {error.name!r} on Python's path; add its folder to PYTHONPATH, or give the file:"
            " module:FILE.py:function"
        ) from error
    except Exception as error:
        raise ValueError(f"{name}: importing {place} failed: {type(error).__name__}: {error}") from error


def _from_file(place: str, name: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        raise ValueError(f"{name}: no file at {path}")
    key = f"_classifier_from_{path.stem}"
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{name}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses look their module up there while it runs
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise ValueError(f"{name}: running {path} failed: {type(error).__name__}: {error}") from error
    return module
