"""Results read from their files: those of this version, and of all before it."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from benchmarks.runs.folder import RunError
from benchmarks.runs.schema.bench import Summary
from benchmarks.runs.schema.certify import CertifySummary
from benchmarks.runs.schema.points import Points
from benchmarks.runs.schema.record import Record

R = TypeVar("R", bound=Record)


def read(path: Path, kind: type[R]) -> R:
    """The record in a JSON file. Raises RunError where there is none, or one of another schema."""
    return _checked(_mapping(path), kind, path)


def read_lines(path: Path, kind: type[R]) -> list[R]:
    """The records of a file with one in each line. Raises RunError for what is not readable."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"{path.parent} holds no readable {path.name}: {error}") from error
    if strange := [type(line).__name__ for line in lines if not isinstance(line, dict)]:
        raise RunError(f"{path}: every line must hold a mapping, got {strange[0]}")
    return [_checked(line, kind, path) for line in lines]


def read_summary(folder: Path) -> Summary:
    """summary.json of a finished run of `purify bench`. Raises RunError where there is none."""
    path = folder / "summary.json"
    values = _mapping(path)
    if str(values.get("schema")).startswith(str(CertifySummary.VERSION).split()[0]):
        raise RunError(
            f"{folder} is a run of `purify certify`: it holds certified radii, which do not go into a table of"
            f" accuracies under attack; its own table is printed by `purify certify ... --out {folder} --resume`"
        )
    summary = _checked(values, Summary, path)
    if not summary.complete:
        raise RunError(f"{path}: the run is not finished; go on with it by `purify bench ... --out {folder} --resume`")
    return summary


def read_points(folder: Path) -> Points | None:
    """sweep.json or compare.json of a folder, None where it has neither. Raises RunError for one that is not
    readable.
    """
    paths = (folder / "sweep.json", folder / "compare.json")
    return next((read(path, Points) for path in paths if path.is_file()), None)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path.parent} holds no readable {path.name}: {error}") from error
    if not isinstance(values, dict):
        raise RunError(f"{path} holds no mapping but {type(values).__name__}")
    return values


def _checked(values: dict[str, Any], kind: type[R], path: Path) -> R:
    says_its_schema = "schema_version" in kind.model_fields
    schema = values.get("schema", None if says_its_schema else kind.VERSION)
    if schema != kind.VERSION:
        raise RunError(
            f"{path} is not of schema {kind.VERSION} but of {schema}: this version of purify does not read it; take"
            " the one that wrote it, or a newer one"
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RunError(f"{path} is not what it should be: {place}: {first['msg']}") from None
