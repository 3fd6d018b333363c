"""Figures of `purify sweep` and `purify compare`, as PNG files."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.reports.figures import errors_of
from benchmarks.runs.schema import MeasuredPoint, PointRow, Points

Entry = tuple[MeasuredPoint, PointRow]
"""A point and one of its rows."""

_WIDE = 20.0  # from this ratio of the largest to the smallest value on, an axis is logarithmic
_STYLES = ("-", "--", ":", "-.")
_MARKERS = "osd^vXP*"
_SPREAD = 0.02  # of their value, to each side: how far equal costs are set apart at most
_PANELS = 4  # side by side


def save_sweep_curves(result: Points, path: Path) -> None:
    """Single-draw accuracy against each numeric value that was swept, with 95 % intervals: a colour for each row, a
    style for each of the other values.

    Where no value is a number, against the points' names.
    """
    points = result.measured
    keys = [key for key in result.keys if _is_numeric(points, key)]
    figure, axes = plt.subplots(
        1, max(len(keys), 1), figsize=(6.4 * max(len(keys), 1), 4.4), squeeze=False, layout="constrained"
    )
    for axis, key in zip(axes[0], keys, strict=False):
        others = [] if result.mode == "zip" else [other for other in result.keys if other != key]
        _draw_curves(axis, points, key, others)
    if not keys:
        _draw_by_name(axes[0, 0], points)
    for axis in axes[0]:
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_pareto(result: Points, path: Path) -> None:
    """Single-draw accuracy of the defence against network evaluations per purified image, a panel for clean images and
    for each attack with its settings.

    The line is the Pareto front of the values, whatever their intervals. Where all points cost the same, one panel with
    the points side by side.
    """
    points = result.measured
    costs = {point.network_evaluations for point in points}
    if len(costs) == 1:
        figure, axis = plt.subplots(figsize=(max(6.4, 0.6 * len(points) + 1.5), 4.4), layout="constrained")
        _draw_by_name(axis, points)
        axis.set_title(f"{costs.pop():g} network evaluations each", fontsize=10)
        axis.legend(fontsize=7)
    else:
        groups = _groups(points)
        columns = min(len(groups), _PANELS)
        rows = math.ceil(len(groups) / columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(4.6 * columns + 2, 4.4 * rows), squeeze=False, layout="constrained"
        )
        shown: dict[str, Any] = {}
        for axis, (title, entries) in zip(axes.flat, groups, strict=False):
            _draw_pareto(axis, points, entries)
            axis.set_title(title, fontsize=10)
            shown |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        for axis in axes.flat[len(groups) :]:
            axis.set_axis_off()
        figure.legend(shown.values(), shown.keys(), fontsize=7, loc="outside right center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_pareto(axis: Axes, points: Sequence[MeasuredPoint], entries: Sequence[Entry]) -> None:
    costs = [point.network_evaluations for point, _ in entries]
    places = _dodged(costs)
    on_front = [
        (cost, x, row.single.value) for cost, x, (_, row) in zip(costs, places, entries, strict=True) if row.pareto
    ]
    front = sorted((cost, value) for cost, _, value in on_front)
    axis.step(
        [x for x, _ in front],
        [value for _, value in front],
        where="post",
        color="grey",
        linewidth=1,
        zorder=0,
        label="Pareto front of point estimates",
    )
    axis.plot(
        [x for _, x, _ in on_front],
        [value for _, _, value in on_front],
        "o",
        markersize=13,
        fillstyle="none",
        color="grey",
    )
    for x, (point, row) in zip(places, entries, strict=True):
        position = points.index(point)
        look: dict[str, Any] = {"color": f"C{position % 10}", "fmt": _MARKERS[position // 10 % len(_MARKERS)]}
        axis.errorbar([x], [row.single.value], yerr=errors_of([row.single]), label=point.name, capsize=3, **look)
    apart = f"\n(equal numbers set apart, by {100 * _SPREAD:g} % at most)" if places != costs else ""
    axis.set_xlabel(f"network evaluations per purified image{apart}")
    _finish(axis, costs)


def _groups(points: Sequence[MeasuredPoint]) -> list[tuple[str, list[Entry]]]:
    """The defence's rows that were attacked alike, under a title that tells them from the others."""
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for point, row in _defended(points):
        groups.setdefault(row.attacked_alike, []).append((point, row))
    firsts = [entries[0][1] for entries in groups.values()]
    titled = []
    for first, entries in zip(firsts, groups.values(), strict=True):
        settings = first.settings or {}
        others = [other.settings or {} for other in firsts if other.attack == first.attack]
        differing = [
            f"{key}={value}"
            for key, value in settings.items()
            if key != "threat" and any(other.get(key) != value for other in others)
        ]
        threat = () if first.attack == "none" else (first.threat,)
        titled.append((", ".join((_title(first.attack), *threat, *differing)), entries))
    return titled


def _draw_curves(axis: Axes, points: Sequence[MeasuredPoint], key: str, others: Sequence[str]) -> None:
    groups: dict[tuple[str, ...], list[MeasuredPoint]] = {}
    for point in points:
        group = tuple(f"{other.split('.')[-1]}={point.changes[other]}" for other in others)
        groups.setdefault(group, []).append(point)
    attacks = list(dict.fromkeys(row.attack for _, row in _defended(points)))
    for style, (group, members) in enumerate(groups.items()):
        for colour, attack in enumerate(attacks):
            entries = sorted(
                ((p.changes[key], row.single) for p, row in _defended(members) if row.attack == attack),
                key=lambda entry: entry[0],
            )
            xs, values = [x for x, _ in entries], [estimate.value for _, estimate in entries]
            look: dict[str, Any] = {
                "color": f"C{colour}",
                "linestyle": _STYLES[style % len(_STYLES)],
                "marker": _MARKERS[style % len(_MARKERS)],
                "markersize": 4,
            }
            axis.errorbar(
                xs,
                values,
                yerr=errors_of([e for _, e in entries]),
                capsize=3,
                label=", ".join((_title(attack), *group)),
                **look,
            )
    axis.set_xlabel(key)
    _finish(axis, [point.changes[key] for point in points])


def _draw_by_name(axis: Axes, points: Sequence[MeasuredPoint]) -> None:
    """The points side by side, and at each the attacks beside each other."""
    attacks = list(dict.fromkeys(row.attack for _, row in _defended(points)))
    for number, attack in enumerate(attacks):
        shift = min(0.2, 0.7 / len(attacks)) * (number - (len(attacks) - 1) / 2)
        entries = [
            (points.index(point) + shift, row.single) for point, row in _defended(points) if row.attack == attack
        ]
        axis.errorbar(
            [x for x, _ in entries],
            [e.value for _, e in entries],
            yerr=errors_of([e for _, e in entries]),
            fmt="o",
            capsize=3,
            label=_title(attack),
        )
    names = [point.name.replace(",", "\n") for point in points]
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(points) > 4 else {}
    axis.set_xticks(range(len(points)), names, fontsize=7, **turned)
    _finish(axis)


def _finish(axis: Axes, xs: Sequence[float] = ()) -> None:
    if xs and min(xs) > 0 and max(xs) / min(xs) >= _WIDE:
        axis.set_xscale("log")
    # as good as one value: the whole width would blow up their distance
    elif xs and min(xs) > 0 and max(xs) / min(xs) < 1.2:
        axis.set_xlim(0.8 * min(xs), 1.2 * max(xs))
    axis.set_ylabel("accuracy, single draw")
    axis.set_ylim(-0.02, 1.02)
    axis.grid(alpha=0.3)


def _title(attack: str) -> str:
    return "clean" if attack == "none" else attack


def _defended(points: Sequence[MeasuredPoint]) -> Iterator[Entry]:
    return ((point, row) for point in points for row in point.defended)


def _is_numeric(points: Sequence[MeasuredPoint], key: str) -> bool:
    values = [point.changes[key] for point in points]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _dodged(costs: Sequence[float]) -> list[float]:
    """Equal costs set apart a little, that their intervals can be told from each other."""
    places = []
    for position, cost in enumerate(costs):
        equal = [i for i, other in enumerate(costs) if other == cost]
        step = min(_SPREAD / 2, 2 * _SPREAD / max(len(equal) - 1, 1))
        places.append(cost * (1 + step * (equal.index(position) - (len(equal) - 1) / 2)))
    return places
