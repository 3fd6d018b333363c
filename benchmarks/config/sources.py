"""The code of the user's that a configuration names: what its results depend on beside values, weights and data."""

from collections.abc import Iterator
from typing import Any

from benchmarks.config.sections import Section
from purify import plugins

_KINDS: dict[tuple[str, ...], plugins.Kind] = {
    ("classifier", "name"): "classifiers",
    ("score", "name"): "score_models",
    ("data", "name"): "datasets",
    ("data", "train"): "datasets",
    ("data", "test"): "datasets",
    ("purifier", "scheme"): "purifiers",
    ("purifier", "solver"): "solvers",
    ("solver", "name"): "solvers",
    ("attacks", "kind"): "attacks",
}
"""Where a configuration may name a plug-in: the last two keys, positions in lists left out."""


def sources(settings: Section) -> dict[str, str]:
    """SHA-256 of the file of every plug-in that a configuration names, by its name; empty where it names none.

    Raises:
        PluginError: one that cannot be read.
    """
    named = _named(settings.model_dump(mode="json"), ())
    return {name: plugins.source(kind, name).sha256 for kind, name in named if plugins.is_plugin(kind, name)}


def _named(value: Any, place: tuple[str, ...]) -> Iterator[tuple[plugins.Kind, str]]:
    if isinstance(value, dict):
        for key, of in value.items():
            yield from _named(of, (*place, key))
    elif isinstance(value, list):
        for of in value:
            yield from _named(of, place)
    elif isinstance(value, str) and place[-2:] in _KINDS:
        kind = _KINDS[place[-2:]]
        yield from ((kind, name) for name in (value.split("+") if kind == "datasets" else [value]))
