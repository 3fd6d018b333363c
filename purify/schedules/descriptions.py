"""Schedules as plain data, for files."""

from dataclasses import asdict
from typing import Any

from purify.schedules.base import Schedule
from purify.schedules.discrete import DiscreteVP
from purify.schedules.edm import EDM
from purify.schedules.ve import VE
from purify.schedules.vp import LinearVP, SubVP

SCHEDULES: dict[str, type] = {"LinearVP": LinearVP, "DiscreteVP": DiscreteVP, "SubVP": SubVP, "VE": VE, "EDM": EDM}


def describe(schedule: Schedule) -> dict[str, Any]:
    """A JSON-compatible description that `from_description` turns back into the schedule.

    Raises:
        ValueError: a schedule that is not in `SCHEDULES`: code cannot be stored.
    """
    name = type(schedule).__name__
    if SCHEDULES.get(name) is not type(schedule):
        raise ValueError(
            f"a schedule of type {name} cannot be stored in a file, as it is made of code;"
            f" {', '.join(sorted(SCHEDULES))} can"
        )
    return {"name": name, **asdict(schedule)}  # type: ignore[call-overload]


def from_description(description: dict[str, Any]) -> Schedule:
    """The schedule that `describe` described. Raises ValueError for a name that is not in `SCHEDULES`."""
    arguments = dict(description)
    name = arguments.pop("name", None)
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(sorted(SCHEDULES))}")
    schedule: Schedule = SCHEDULES[name](**arguments)
    return schedule
