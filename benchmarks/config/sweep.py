"""Configurations of `purify sweep` and `purify compare`: a bench configuration, and in what its points differ.

A sweep has a section `sweep:` from dotted keys of the bench configuration to lists of values, all combinations of which
are points; with `mode: zip` the lists are walked together. A comparison has a section `schemes:` from names to changes
of the purifier's section, and with `unequal: true` they may need different numbers of network evaluations.
"""

import copy
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.config import files as configs
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError, validate
from benchmarks.runs.fingerprints import fingerprint
from benchmarks.runs.folder import write_text

MODES = ("grid", "zip")
_LONGEST_NAME = 100
_NAME = re.compile(r"(?!.*\.(json|md|png|yaml)$)[A-Za-z0-9][\w.=,+-]*")  # a folder beside result files


@dataclass(frozen=True)
class Point:
    """One bench run of several.

    Attributes:
        name: unique, and the name of its folder.
        changes: dotted key -> value: what makes it this point.
        values: its bench configuration, plain and not yet checked.
    """

    name: str
    changes: dict[str, Any]
    values: dict[str, Any]

    @cached_property
    def settings(self) -> BenchConfig:
        """The checked configuration. Raises ConfigError with one line for each problem."""
        return validate(BenchConfig, self.values)


@dataclass(frozen=True)
class Plan:
    """The points of a sweep or of a comparison.

    Attributes:
        kind: "sweep" or "compare".
        mode: "grid" or "zip" of a sweep, "schemes" of a comparison.
        axes: of a sweep, dotted key -> values; of a comparison empty.
        points: in the order in which they run.
        source: the configuration that `load_sweep` or `load_compare` makes this plan from, plain values.
        unequal: whether a comparison's configuration allows schemes that need different numbers of network evaluations.
    """

    kind: Literal["sweep", "compare"]
    mode: str
    axes: dict[str, list[Any]]
    points: tuple[Point, ...]
    source: dict[str, Any]
    unequal: bool = False

    def position(self, reference: str) -> int:
        """The position of the point that `reference` numbers, from 0, or names. Raises ConfigError where there
        is none.
        """
        names = [point.name for point in self.points]
        if reference in names:
            return names.index(reference)
        if reference.isdecimal() and int(reference) < len(names):
            return int(reference)
        raise ConfigError(
            f"--reference {reference!r} is neither a number from 0 to {len(names) - 1} nor one of {', '.join(names)}"
        )

    def dump(self, path: Path) -> None:
        """Writes the configuration as YAML that gives this plan again."""
        write_text(path, yaml.safe_dump(self.source, sort_keys=False))

    def check_same(self, path: Path) -> None:
        """Raises ConfigError unless `path`, written by `dump`, gives the same points: what is resumed must be what was
        begun.
        """
        if not path.is_file():
            raise ConfigError(f"--resume: {path.parent} holds no {self.kind} (no {path.name})")
        load = load_sweep if self.kind == "sweep" else load_compare
        try:
            stored = {point.name: point.settings for point in load(str(path)).points}
        except ConfigError as error:
            raise ConfigError(f"--resume: {path} is not the configuration of a {self.kind}: {error}") from error
        given = {point.name: point.settings for point in self.points}
        differing = [name for name in [*given, *(stored.keys() - given.keys())] if given.get(name) != stored.get(name)]
        if differing:
            raise ConfigError(
                f"--resume: the configuration differs from {path} at {', '.join(sorted(differing))}; give the same one,"
                " or another --out"
            )


def load_sweep(
    config: str, overrides: list[str] | None = None, over: list[str] | None = None, zipped: bool = False
) -> Plan:
    """Reads a sweep.

    Args:
        config: as for `benchmarks.config.files.load`: a bench configuration, with or without a section `sweep:`.
        overrides: "dotted.key=value" strings, for all points.
        over: "dotted.key=value,value,..." strings, beside the section's keys or instead of them.
        zipped: whether to walk the lists together, whatever the section says.

    Raises:
        ConfigError: no readable configuration, or a section that makes no points. The points' own values are not
            checked yet.
    """
    base = configs.load_values(config, overrides)
    section = base.pop("sweep", {})
    if not isinstance(section, dict):
        raise ConfigError(
            f"sweep: expected a mapping from keys such as purifier.t_star to lists of values, got {section!r}"
        )
    axes = {key: values for key, values in section.items() if key != "mode"} | _parse_over(over or [])
    mode = "zip" if zipped else section.get("mode", "grid")
    _check_axes(axes, mode)
    labels = _labels(list(axes))
    points = []
    for values in zip(*axes.values(), strict=True) if mode == "zip" else itertools.product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        changed = copy.deepcopy(base)
        for key, value in changes.items():
            configs.set_value(changed, key, copy.deepcopy(value), "sweep:")
        points.append(Point(_point_name((labels[key], value) for key, value in changes.items()), changes, changed))
    _check_names(points)
    return Plan("sweep", mode, axes, tuple(points), {**base, "sweep": {**axes, "mode": mode}})


def load_compare(config: str, overrides: list[str] | None = None) -> Plan:
    """Reads a comparison: each scheme changes the purifier's section, or replaces it where it names another `scheme`.

    Args:
        config: as for `benchmarks.config.files.load`: a bench configuration with a section `schemes:`, and possibly
            `unequal: true`.
        overrides: "dotted.key=value" strings.

    Raises:
        ConfigError: no readable configuration, or schemes that make no comparison. The schemes' own values are not
            checked yet.
    """
    base = configs.load_values(config, overrides)
    schemes, unequal, purifier = base.pop("schemes", None), base.pop("unequal", False), base.get("purifier") or {}
    if not isinstance(unequal, bool):
        raise ConfigError(f"unequal: expected true or false, got {unequal!r}")
    if not isinstance(schemes, dict) or len(schemes) < 2:
        raise ConfigError(
            f"schemes: expected a mapping from two or more names to changes of the purifier's section, got {schemes!r}"
        )
    if not isinstance(purifier, dict):
        raise ConfigError(f"purifier: expected a mapping, got {purifier!r}")
    points = []
    for name, changes in schemes.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"schemes: {name!r} is to be a folder's name: letters, digits, '-', '_', '.', '=', ',' and '+', a"
                " letter or digit first, no file's ending"
            )
        if not isinstance(changes, dict):
            raise ConfigError(
                f"schemes.{name}: expected a mapping of changes to the purifier's section, {{}} for none, got"
                f" {changes!r}"
            )
        section = {**purifier, **changes} if configs.same_scheme(purifier, changes) else changes
        points.append(
            Point(
                name,
                {f"purifier.{key}": value for key, value in changes.items()},
                copy.deepcopy({**base, "purifier": section}),
            )
        )
    return Plan("compare", "schemes", {}, tuple(points), {**base, "unequal": unequal, "schemes": schemes}, unequal)


def _parse_over(over: list[str]) -> dict[str, list[Any]]:
    axes: dict[str, list[Any]] = {}
    for text in over:
        key, separator, values = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"--over takes key=value,value,..., got {text!r}")
        if key in axes:
            raise ConfigError(f"--over {key} is given twice; give all its values at once: {key}=value,value,...")
        try:
            axes[key] = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError as error:
            raise ConfigError(f"--over {key}: {values!r} is not a list of YAML values: {error}") from error
    return axes


def _check_axes(axes: dict[str, Any], mode: object) -> None:
    if mode not in MODES:
        raise ConfigError(f"sweep.mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if not axes:
        raise ConfigError(
            "nothing to sweep: give --over KEY=VALUE,VALUE,..., or a section `sweep:` of keys and lists of values"
        )
    for key, values in axes.items():
        if not isinstance(key, str):
            raise ConfigError(f"sweep: expected keys such as purifier.t_star, got {key!r}")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"sweep: {key}: expected a list of one or more values, got {values!r}")
    lengths = {key: len(values) for key, values in axes.items()}
    if mode == "zip" and len(set(lengths.values())) > 1:
        raise ConfigError(
            "sweep: mode zip walks lists of equal length, got"
            f" {', '.join(f'{n} values of {key}' for key, n in lengths.items())}"
        )


def _check_names(points: list[Point]) -> None:
    first: dict[str, Point] = {}
    for point in points:
        other = first.setdefault(point.name, point)
        if other is not point:
            raise ConfigError(
                f"sweep: two points are called {point.name!r}, {other.changes} and {point.changes}: give each value"
                " once"
            )


def _labels(keys: list[str]) -> dict[str, str]:
    """The shortest end of each key that no other key has."""
    labels = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[i:]) for i in reversed(range(len(parts)))]
        labels[key] = next(
            (end for end in ends if not any(other != key and f".{other}".endswith(f".{end}") for other in keys)), key
        )
    return labels


def _point_name(changes: Iterable[tuple[str, Any]]) -> str:
    """A folder's name such as t_star=0.1,steps=5."""
    name = ",".join(f"{label}={_text(value)}" for label, value in changes)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 9]}-{fingerprint(name)[:8]}"


def _text(value: Any) -> str:
    """A value as a part of a file's name."""
    text = (
        value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("...\n").strip()
    )
    return re.sub(r"[^\w.+-]+", "-", text.strip("{}[]"))
