"""Results written to their files, which are never seen half written."""

import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.runs.folder import write_text
from benchmarks.runs.schema.record import Record


def write(path: Path, record: Record, indent: int | None = 2) -> None:
    """One record as JSON, on a single line without an `indent`."""
    write_text(path, json.dumps(record.as_json(), indent=indent) + "\n")


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """One record in each line."""
    write_text(path, "\n".join(json.dumps(record.as_json()) for record in records) + "\n")
