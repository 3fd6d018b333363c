"""Configurations: YAML files, checked before any work starts.

A file may name a parent in `extends:` (a path relative to itself, or the name of a packaged one); its own values
override the parent's, section by section. A section that names another `scheme` than the parent's replaces it. A
plug-in's file (`module:FILE.py:NAME`) is looked for beside the YAML file, then from the current folder.
"""

import difflib
from pathlib import Path
from typing import Any

import yaml

from benchmarks.config.sections import Config, ConfigError, Section, validate
from benchmarks.runs.folder import write_text
from purify import plugins


def configs_folder() -> Path:
    """The folder of the configurations that come with the package: in a wheel beside this file, in a checkout beside
    the packages.
    """
    here = Path(__file__).parents[1]
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def known() -> list[str]:
    """The names of the packaged configurations."""
    shipped = configs_folder()
    return [str(path.relative_to(shipped).with_suffix("")) for path in sorted(shipped.rglob("*.yaml"))]


def find(config: str) -> Path:
    """A path that exists, or a name below `configs_folder()` with or without `.yaml`. Raises ConfigError that lists the
    known names.
    """
    shipped = configs_folder()
    for path in (Path(config), shipped / config, shipped / f"{config}.yaml", shipped / config.removeprefix("configs/")):
        if path.is_file():
            return path
    near = difflib.get_close_matches(config, known(), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"no configuration {config!r}: neither a file nor one of {', '.join(known())}{hint}")


def load(kind: type[Config], config: str, overrides: list[str] | None = None) -> Config:
    """Reads, merges and checks a configuration.

    Args:
        kind: the model to check against.
        config: see `find`.
        overrides: "dotted.key=value" strings, the value in YAML.

    Raises:
        ConfigError: anything wrong with the file, a key or a value.
    """
    return validate(kind, load_values(config, overrides))


def load_values(config: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """The plain values of a configuration, read and merged as for `load`, but not checked."""
    values = read(find(config))
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set takes key=value, got {override!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {key}: {text!r} is not YAML: {error}") from error
        set_value(values, key, value)
    return values


def read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's values over those of the files that it extends. Raises ConfigError for what is not readable."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `extends` goes round in a circle")
    values, parent = _read_one(path)
    return values if parent is None else _merge(read(parent, (*seen, path.resolve())), values)


def parent_of(path: Path) -> Path | None:
    """The file that a configuration's file extends. Raises ConfigError as `read`."""
    return _read_one(path)[1]


def _read_one(path: Path) -> tuple[dict[str, Any], Path | None]:
    """A file's own values, and the file that it extends."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a readable YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, got {type(values).__name__}")
    parent = values.pop("extends", None)
    values = {key: _beside(value, path.parent) for key, value in values.items()}
    if parent is None:
        return values, None
    beside, packaged = path.parent / str(parent), configs_folder() / f"{parent}.yaml"
    for candidate in (beside, packaged):
        if candidate.is_file():
            return values, candidate
    near = difflib.get_close_matches(str(parent), known(), n=1, cutoff=0.6)
    hint = f"; did you mean the packaged {near[0]!r}?" if near else ""
    raise ConfigError(f"{path}: extends {parent!r}, but there is no file {beside}{hint}")


def _beside(value: Any, folder: Path) -> Any:
    """Plain values with the plug-ins whose files lie in the folder as seen from the current one."""
    if isinstance(value, dict):
        return {key: _beside(each, folder) for key, each in value.items()}
    if isinstance(value, list):
        return [_beside(each, folder) for each in value]
    return plugins.beside(value, folder) if isinstance(value, str) else value


def _merge(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in update.items():
        old = merged.get(key)
        merged[key] = (
            _merge(old, value)
            if isinstance(old, dict) and isinstance(value, dict) and same_scheme(old, value)
            else value
        )
    return merged


DEFAULT_SCHEME = "diffpure"
"""What a purifier's section means that names no scheme."""


def same_scheme(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether `new` changes the section `old`; where it names another `scheme`, whose keys are others, it takes its
    place.
    """
    before = old.get("scheme", DEFAULT_SCHEME)
    return bool(new.get("scheme", before) == before)


def set_value(values: dict[str, Any], key: str, value: Any, asked_by: str = "--set") -> None:
    """Sets `values[a][b][0]...` for the dotted key a.b.0, making sections that are not there; `asked_by` begins the
    message of the error.

    Another `scheme` empties its section of the old one's keys.

    Raises:
        ConfigError: there is no such place, in a list for instance.
    """
    node: Any = values
    *parents, last = key.split(".")
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if last == "scheme" and not same_scheme(node, {"scheme": value}):
            node.clear()  # the keys of another scheme
        node[int(last) if isinstance(node, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError):
        raise ConfigError(f"{asked_by} {key}: there is nothing at this key to set a value in") from None


def dump(config: Section, path: Path) -> None:
    """Writes the complete configuration, defaults included, as YAML that `load` reads back."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _differing(given: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """The dotted keys whose values differ."""
    names = []
    for key in [*given, *(stored.keys() - given.keys())]:
        ours, theirs = given.get(key), stored.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            names += [f"{key}.{name}" for name in _differing(ours, theirs)]
        elif ours != theirs:
            names.append(key)
    return names


def check_same(config: Section, path: Path) -> None:
    """Raises ConfigError unless `path`, written by `dump`, holds the same configuration: a resumed run must be the run
    that was begun.
    """
    if not path.is_file():
        raise ConfigError(f"--resume: {path.parent} holds no run (no {path.name})")
    stored, given = load(type(config), str(path)).model_dump(mode="json"), config.model_dump(mode="json")
    if stored != given:
        keys = ", ".join(_differing(given, stored))
        raise ConfigError(
            f"--resume: the configuration differs from {path} in {keys}; give the same one, or another --out"
        )
