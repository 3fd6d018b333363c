"""Code of a user's own by name: "module:FILE.py:NAME", "module:PACKAGE.MODULE:NAME", or an entry point of an installed
package. It runs when it is named.

The one resolver for everything that can be named: whoever takes a name asks here once his own names are exhausted.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

Kind = Literal["solvers", "purifiers", "score_models", "classifiers", "attacks", "datasets"]
"""What a name can stand for; the entry points of each are the group `purify.KIND`."""

PREFIX = "module:"
FORM = "module:FILE.py:NAME"
"""How a plug-in is named, for messages that list what is known."""


class PluginError(ValueError):
    """Code of the user's that cannot be used; the message gives its name, its file and what was expected."""


@dataclass(frozen=True)
class Source:
    """The file that a name leads to, and its SHA-256."""

    path: Path
    sha256: str


def is_plugin(kind: Kind, name: object) -> bool:
    """Whether `name` has the form of a plug-in or is an entry point of that kind; it need not work."""
    return isinstance(name, str) and (name.startswith(PREFIX) or bool(_entry_points(kind, name)))


def load(kind: Kind, name: str, expected: str) -> Callable[..., Any]:
    """The class or function that a name stands for.

    Args:
        kind: of plug-in.
        name: "module:FILE.py:NAME", the file relative to the current folder, "module:PACKAGE.MODULE:NAME", or the name
            of an entry point.
        expected: what it should be, for the message: "a function without arguments that returns ...".

    Raises:
        PluginError: no such file, module or name in it, it raises when it is imported, or it is nothing to call.
    """
    if name.startswith(PREFIX):
        place, attribute = _parts(name)
        module = _module(name)
        if not hasattr(module, attribute):
            public = [entry for entry in vars(module) if not entry.startswith("_")]
            near = difflib.get_close_matches(attribute, public, n=5, cutoff=0.4) or public[:5]
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise PluginError(f"{name}: {place} has no {attribute!r}{hint}")
        found = getattr(module, attribute)
    else:
        found, attribute = _load_entry_point(kind, name), name
    # an instance of a module can be called too, but it is not what makes one
    if not callable(found) or (not isinstance(found, type) and hasattr(found, "forward")):
        raise PluginError(f"{name}: {attribute!r} is a {type(found).__name__}, expected {expected}")
    made: Callable[..., Any] = found
    return made


def call(name: str, make: Callable[..., Any], expected: type, what: str, /, **arguments: Any) -> Any:
    """What `make(**arguments)` returns, which must be of the type `expected`.

    Args:
        name: of the plug-in, for messages.
        make: what `load` gave.
        expected: the type of the result.
        what: what is expected, for the message: "a torch.nn.Module from images in [0, 1] to logits".
        arguments: of the call.

    Raises:
        PluginError: it raises, or returns something else.
    """
    called = getattr(make, "__name__", name)
    try:
        result = make(**arguments)
    except Exception as error:
        raise PluginError(f"{name}: {called}() failed: {type(error).__name__}: {error}") from error
    if not isinstance(result, expected):
        raise PluginError(f"{name}: {called}() returned a {type(result).__name__}, expected {what}")
    return result


def source(kind: Kind, name: str) -> Source:
    """The file behind a name and its SHA-256: what a result by that plug-in depends on. Raises PluginError as `load`,
    and for code that lies in no file.
    """
    if name.startswith(PREFIX):
        file = _module(name).__file__
    else:
        file = inspect.getsourcefile(_load_entry_point(kind, name))
    if file is None or not Path(file).is_file():
        raise PluginError(f"{name}: its code lies in no file that could be read")
    return Source(Path(file), hashlib.sha256(Path(file).read_bytes()).hexdigest())


def beside(name: str, folder: Path) -> str:
    """The name "module:FILE.py:NAME" with FILE as seen from the current folder, where it lies in `folder`; every other
    name as it is.

    Below the current folder the path stays relative: the same name then means the same file on another machine.
    """
    place, _, attribute = name.removeprefix(PREFIX).rpartition(":")
    if not name.startswith(PREFIX) or not place.endswith(".py") or not (folder / place).is_file():
        return name
    path = (folder / place).resolve()
    here = Path.cwd().resolve()
    return f"{PREFIX}{path.relative_to(here) if path.is_relative_to(here) else path}:{attribute}"


def _parts(name: str) -> tuple[str, str]:
    place, _, attribute = name.removeprefix(PREFIX).rpartition(":")
    if not place or not attribute:
        raise PluginError(f"{name}: expected module:path.to.module:function or module:path/to/file.py:function")
    return place, attribute


def _module(name: str) -> ModuleType:
    place, _ = _parts(name)
    return _from_file(place, name) if place.endswith(".py") else _by_name(place, name)


def _by_name(place: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(error.name + ".")):
            raise PluginError(f"{name}: importing {place} failed: {error}") from error
        raise PluginError(
            f"{name}: no module {error.name!r} on Python's path; add its folder to PYTHONPATH, or give the file:"
            " module:FILE.py:function"
        ) from error
    except Exception as error:
        raise PluginError(f"{name}: importing {place} failed: {type(error).__name__}: {error}") from error


def _from_file(place: str, name: str) -> ModuleType:
    """The module of a file, run once as long as its content stays the same: a class is one class, whoever names it."""
    path = Path(place).resolve()
    if not path.is_file():
        raise PluginError(f"{name}: no file at {path}")
    key = f"_plugin_{path.stem}_{hashlib.sha256(os.fsencode(path) + path.read_bytes()).hexdigest()[:16]}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{name}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses look their module up there while it runs
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise PluginError(f"{name}: running {path} failed: {type(error).__name__}: {error}") from error
    return module


def _entry_points(kind: Kind, name: str) -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=f"purify.{kind}", name=name))


def _load_entry_point(kind: Kind, name: str) -> Any:
    found = _entry_points(kind, name)
    if not found:
        raise PluginError(f"{name!r} is neither {FORM} nor an entry point of the group purify.{kind}")
    if len({entry.value for entry in found}) > 1:
        raise PluginError(
            f"{name!r}: several packages have an entry point purify.{kind} of this name:"
            f" {', '.join(entry.value for entry in found)}; name one as module:..."
        )
    try:
        return found[0].load()
    except Exception as error:
        raise PluginError(f"{name}: loading {found[0].value} failed: {type(error).__name__}: {error}") from error
