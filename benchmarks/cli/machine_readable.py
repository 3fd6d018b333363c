"""Results as one line of JSON."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def as_line(result: object) -> str:
    """One line of JSON for a mapping, a pydantic model, a dataclass, a list of these, or None, which is {}.

    JSON has no number for NaN and infinity: they become null.
    """
    return json.dumps({} if result is None else plain(result), ensure_ascii=True, allow_nan=False)


def in_folder(folder: Path, result: object = None) -> dict[str, Any]:
    """A result that is one object, with the folder that holds it."""
    return {"folder": str(folder), **({} if result is None else plain(result))}


def plain(value: object) -> Any:
    """The value as dictionaries, lists, texts, finite numbers, and None."""
    if hasattr(value, "as_json"):
        value = value.as_json()  # as it stands in the run's own files
    elif hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", by_alias=True)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
