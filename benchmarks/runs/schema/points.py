"""What `purify sweep` and `purify compare` write."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from benchmarks.evaluation.statistics import Estimate, PairedDifference
from benchmarks.runs.schema.bench import Judged
from benchmarks.runs.schema.record import Record

State = Literal["waiting", "finished", "failed"]


class PointRow(Judged):
    """A row of a point's summary, with its cost by image, compared with the reference's row of the same name.

    Attributes:
        settings: all that the attack is but for its name; None of clean images.
        network_evaluations_per_image: of the row; `seconds_per_image` likewise.
        paired: single-draw accuracy minus that of the reference, on the same images.
        note: in what the reference was attacked differently.
        pareto: of rows of the defence: whether no other point is more accurate at as few network evaluations.
    """

    settings: dict[str, Any] | None = None
    network_evaluations_per_image: float
    seconds_per_image: float
    paired: PairedDifference | None = None
    note: str | None = None
    pareto: bool | None = None

    @property
    def attacked_alike(self) -> tuple[str, str, str]:
        """What rows share whose accuracies mean the same: the attack's name, its threat and its settings."""
        return self.attack, self.threat, json.dumps(self.settings, sort_keys=True)

    @property
    def worst_of_all(self) -> Estimate:
        """Worst of all draws, however many they are."""
        return next(iter(self.worst_of.values()))

    @property
    def majority_of_all(self) -> Estimate | None:
        """The vote of all draws, however many they are."""
        return next(iter((self.majority or {}).values()), None)


class PointFacts(Record):
    """What every point says.

    Attributes:
        name: unique; `folder` below the sweep's.
        changes: key of the configuration -> what makes it this point.
        state: what became of it.
        error: why it failed.
    """

    name: str
    folder: str
    changes: dict[str, Any]
    state: State
    error: str | None = None


class Point(PointFacts):
    """A point without results."""

    results: tuple[()] = ()


class MeasuredPoint(PointFacts):
    """A finished point.

    Attributes:
        images: how many; `draws` of the verdict.
        network_evaluations: to purify and classify an image once; `seconds` likewise.
        results: its rows.
    """

    images: int
    draws: int
    network_evaluations: float
    seconds: float
    results: Annotated[tuple[PointRow, ...], Field(min_length=1)]

    @property
    def defended(self) -> Iterator[PointRow]:
        """The rows of the defence."""
        return (row for row in self.results if row.model == "defended")


class Points(Record):
    """sweep.json, and compare.json.

    Attributes:
        schema_version: 1, under the key `schema`.
        kind: which of the two.
        complete: whether all points are finished.
        mode: "grid" or "zip" of a sweep, "schemes" of a comparison.
        keys: of the configuration that are swept.
        reference: name of the point that the others are compared with.
        environment: versions and hardware.
        points: in the order in which they run.
    """

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["sweep", "compare"]
    complete: bool
    mode: str
    keys: tuple[str, ...]
    reference: str
    environment: dict[str, Any] = {}
    points: tuple[Annotated[MeasuredPoint | Point, Field(union_mode="left_to_right")], ...]

    @property
    def measured(self) -> list[MeasuredPoint]:
        """The points that have results."""
        return [point for point in self.points if isinstance(point, MeasuredPoint)]

    @property
    def draws(self) -> int | None:
        """Of every point; None where points differ in it, or none is finished."""
        counts = {point.draws for point in self.measured}
        return counts.pop() if len(counts) == 1 else None
