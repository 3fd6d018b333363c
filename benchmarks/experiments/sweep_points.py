"""What became of the points of a sweep, and how they compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.config.bench import BenchConfig
from benchmarks.config.sweep import Point
from benchmarks.evaluation.statistics import paired_difference
from benchmarks.runs import schema
from benchmarks.runs.schema import MeasuredPoint, PointRow, Result, Summary
from benchmarks.runs.schema.bench import Judged
from benchmarks.runs.schema.points import State

RowName = tuple[str, str]
"""A model and an attack."""


@dataclass(frozen=True)
class Finished:
    """What a point measured: its summary, and every row's accuracy by image, (n,) in [0, 1]."""

    summary: Summary
    per_image: dict[RowName, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What became of a point: results, or an error, or nothing yet."""

    state: State = "waiting"
    finished: Finished | None = None
    error: str | None = None


@dataclass(frozen=True)
class Reference:
    """The point that others are compared with."""

    finished: Finished
    settings: BenchConfig


def point_of(point: Point, outcome: Outcome, reference: Reference | None) -> MeasuredPoint | schema.Point:
    """A point of KIND.json; its rows are compared with those of `reference`, where there is one of the same images."""
    settings = point.settings.model_dump(mode="json")
    facts: dict[str, Any] = {
        "name": point.name,
        "folder": point.name,
        "changes": {key: _as_checked(settings, key, value) for key, value in point.changes.items()},
        "state": outcome.state,
        "error": outcome.error,
    }
    if outcome.finished is None:
        return schema.Point(**facts, results=())
    summary = outcome.finished.summary
    rows = [_row(result, summary.images, point.settings, outcome.finished, reference) for result in summary.results]
    clean = next(row for row in rows if (row.model, row.attack) == ("defended", "none"))
    return MeasuredPoint(
        **facts,
        images=summary.images,
        draws=summary.draws,
        network_evaluations=clean.network_evaluations_per_image / summary.draws,
        seconds=clean.seconds_per_image / summary.draws,
        results=tuple(rows),
    )


def _as_checked(settings: dict[str, Any], key: str, value: Any) -> Any:
    """The number that the checked configuration makes of a value, "8/255" for instance; else the value."""
    node: Any = settings
    for part in key.split("."):
        try:
            node = node[int(part)] if isinstance(node, list) else node[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return value
    return node if isinstance(node, int | float) else value


def _row(result: Result, images: int, settings: BenchConfig, own: Finished, reference: Reference | None) -> PointRow:
    """A row of a point: from its summary, with cost by image, the attack's settings, and the difference from the
    reference's row of the same name, with a note where that is of another attack or threat.
    """
    name = result.model, result.attack
    attack = _attack_settings(settings, result.attack)
    there = {} if reference is None else {(r.model, r.attack): r for r in reference.finished.summary.results}
    paired, note = None, None
    if reference is not None and name in there:
        paired = paired_difference(own.per_image[name], reference.finished.per_image[name])
        other = _attack_settings(reference.settings, result.attack)
        differing = {
            "another threat": result.threat != there[name].threat,
            "another attack": _without_threat(attack) != _without_threat(other),
        }
        note = ", ".join(note for note, differs in differing.items() if differs) or None
    return PointRow(
        **{name: getattr(result, name) for name in Judged.model_fields},
        settings=attack,
        network_evaluations_per_image=result.network_evaluations / images,
        seconds_per_image=result.seconds / images,
        paired=paired,
        note=note,
    )


def _attack_settings(settings: BenchConfig, name: str) -> dict[str, Any] | None:
    """What an attack is, beside its name and the models that it is for; None of no attack."""
    named = (attack for attack in settings.attacks if attack.label == name)
    return next((attack.model_dump(mode="json", exclude={"name", "models"}) for attack in named), None)


def _without_threat(settings: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (settings or {}).items() if key != "threat"}


def with_pareto(points: Sequence[MeasuredPoint | schema.Point]) -> tuple[MeasuredPoint | schema.Point, ...]:
    """The points, whose rows of the defence say whether no other point is more accurate under the same attack at as
    few network evaluations.
    """
    rows: dict[tuple[str, str, str], list[tuple[float, PointRow]]] = {}
    measured = [point for point in points if isinstance(point, MeasuredPoint)]
    for point in measured:
        for row in point.defended:
            rows.setdefault(row.attacked_alike, []).append((point.network_evaluations, row))
    on_front: dict[int, bool] = {}
    for entries in rows.values():
        front = pareto_front([cost for cost, _ in entries], [row.single.value for _, row in entries])
        on_front |= {id(row): position in front for position, (_, row) in enumerate(entries)}

    def marked(row: PointRow) -> PointRow:
        return row.model_copy(update={"pareto": on_front[id(row)]}) if id(row) in on_front else row

    return tuple(
        point.model_copy(update={"results": tuple(map(marked, point.results))})
        if isinstance(point, MeasuredPoint)
        else point
        for point in points
    )


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Positions, by ascending cost, where nothing of at most the cost has at least the value with one of the two
    better.
    """
    pairs = list(zip(costs, values, strict=True))
    front = [
        i
        for i, (c, v) in enumerate(pairs)
        if not any(cost <= c and value >= v and (cost, value) != (c, v) for cost, value in pairs)
    ]
    return sorted(front, key=lambda i: pairs[i])
