"""The configurations that come with the package: which there are, and what stands in one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.config.files import find, known, load_values, parent_of, read

Command = Literal["bench", "audit", "certify", "compare", "sweep", "train"]

_MARKS: dict[str, Command] = {
    "task": "train",
    "schemes": "compare",
    "sweep": "sweep",
    "sigma": "certify",
}
"""A key that only the configurations of one command have -> that command."""


@dataclass(frozen=True)
class Preset:
    """A packaged configuration.

    Attributes:
        name: as commands take it.
        command: the one that it is for; what is for `bench` or `audit` is taken by `rivals` and each other too.
        comment: its first line of comment.
    """

    name: str
    command: Command
    comment: str


def listed() -> list[Preset]:
    """All packaged configurations, by name."""
    return [Preset(name, command_of(read(find(name))), _comment(find(name))) for name in known()]


def command_of(values: dict[str, Any]) -> Command:
    """The command that plain values are the configuration of."""
    found: Command = next((command for mark, command in _MARKS.items() if mark in values), "bench")
    # the copy that a run of `purify bench` keeps has all keys of both
    return "audit" if found == "bench" and "audit" in values and "pictures" not in values else found


def text_of(config: str) -> str:
    """What stands in a configuration's file, comments included, and after it in the files that it extends, the nearest
    first.

    Args:
        config: see `find`.

    Raises:
        ConfigError: there is none, or one that cannot be read.
    """
    path: Path | None = find(config)
    assert path is not None
    read(path)  # says what is wrong with one of them, a circle for instance
    parts: list[str] = []
    while path is not None:
        said = f"# {path}" + (", which is extended:" if parts else "")
        parts.append(f"{said}\n{path.read_text().strip()}\n")
        path = parent_of(path)
    return "\n".join(parts)


def resolved(config: str, overrides: list[str] | None = None) -> str:
    """All values of a configuration and of those that it extends, merged, as YAML without comments. Raises ConfigError
    as `text_of`, and for overrides that cannot be used.
    """
    return str(yaml.safe_dump(load_values(config, overrides), sort_keys=False))


def _comment(path: Path) -> str:
    lines = (line.strip() for line in path.read_text().splitlines())
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
