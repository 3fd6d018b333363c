"""Figures of `purify sweep` and `purify compare`, as PNG files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_WIDE = 20.0  # from this ratio of the largest to the smallest value on, an axis is logarithmic
_STYLES = ("-", "--", ":", "-.")
_MARKERS = "osd^vXP*"


def save_sweep_curves(result: dict[str, Any], path: Path) -> None:
    """Single-draw accuracy against each numeric value that was swept, with 95 % intervals: a colour for each row, a style for each of the other values.

    Where no value is a number, against the points' names.
    """
    points = [point for point in result["points"] if point["results"]]
    keys = [key for key in result["keys"] if _is_numeric(points, key)]
    figure, axes = plt.subplots(1, max(len(keys), 1), figsize=(6.4 * max(len(keys), 1), 4.4), squeeze=False, layout="constrained")
    for axis, key in zip(axes[0], keys, strict=False):
        others = [] if result["mode"] == "zip" else [other for other in result["keys"] if other != key]
        _draw_curves(axis, points, key, others)
    if not keys:
        _draw_by_name(axes[0, 0], points)
    for axis in axes[0]:
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_pareto(result: dict[str, Any], path: Path) -> None:
    """Single-draw accuracy of the defence against network evaluations per purified image: clean and each attack, the Pareto front drawn as a line."""
    points = [point for point in result["points"] if point["results"]]
    attacks = list(dict.fromkeys(row["attack"] for _, row in _defended(points)))
    figure, axes = plt.subplots(1, len(attacks), figsize=(4.6 * len(attacks) + 2, 4.4), squeeze=False, layout="constrained")
    for axis, attack in zip(axes[0], attacks, strict=True):
        entries = [(point, row) for point, row in _defended(points) if row["attack"] == attack]
        places = _dodged([point["network_evaluations"] for point, _ in entries])
        for x, (point, row) in zip(places, entries, strict=True):
            position = points.index(point)
            look = {"color": f"C{position % 10}", "fmt": _MARKERS[position // 10 % len(_MARKERS)], "capsize": 3}
            axis.errorbar([x], [row["single"]["value"]], yerr=_errors([row["single"]]), label=point["name"], **look)
        front = sorted((x, row["single"]["value"]) for x, (_, row) in zip(places, entries, strict=True) if row["pareto"])
        axis.step([x for x, _ in front], [value for _, value in front], where="post", color="grey", linewidth=1, zorder=0, label="Pareto front")
        axis.plot([x for x, _ in front], [value for _, value in front], "o", markersize=13, fillstyle="none", color="grey")
        axis.set_title(_title(attack), fontsize=10)
        axis.set_xlabel("network evaluations per purified image")
        _finish(axis, places)
    axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_curves(axis: Axes, points: list[dict[str, Any]], key: str, others: Sequence[str]) -> None:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for point in points:
        groups.setdefault(tuple(f"{other.split('.')[-1]}={point['changes'][other]}" for other in others), []).append(point)
    attacks = list(dict.fromkeys(row["attack"] for _, row in _defended(points)))
    for style, (group, members) in enumerate(groups.items()):
        for colour, attack in enumerate(attacks):
            entries = sorted(((p["changes"][key], row["single"]) for p, row in _defended(members) if row["attack"] == attack), key=lambda entry: entry[0])
            xs, values = [x for x, _ in entries], [estimate["value"] for _, estimate in entries]
            look = {"color": f"C{colour}", "linestyle": _STYLES[style % len(_STYLES)], "marker": _MARKERS[style % len(_MARKERS)], "markersize": 4}
            axis.errorbar(xs, values, yerr=_errors([e for _, e in entries]), capsize=3, label=", ".join((_title(attack), *group)), **look)
    axis.set_xlabel(key)
    _finish(axis, [point["changes"][key] for point in points])


def _draw_by_name(axis: Axes, points: list[dict[str, Any]]) -> None:
    for attack in dict.fromkeys(row["attack"] for _, row in _defended(points)):
        entries = [(points.index(point), row["single"]) for point, row in _defended(points) if row["attack"] == attack]
        axis.errorbar(
            [i for i, _ in entries], [e["value"] for _, e in entries], yerr=_errors([e for _, e in entries]), fmt="o", capsize=3, label=_title(attack)
        )
    axis.set_xticks(range(len(points)), [point["name"].replace(",", "\n") for point in points], fontsize=7)
    _finish(axis)


def _finish(axis: Axes, xs: Sequence[float] = ()) -> None:
    if xs and min(xs) > 0 and max(xs) / min(xs) >= _WIDE:
        axis.set_xscale("log")
    elif xs and min(xs) > 0 and max(xs) / min(xs) < 1.2:  # as good as one value: the whole width would blow up their distance
        axis.set_xlim(0.8 * min(xs), 1.2 * max(xs))
    axis.set_ylabel("accuracy, single draw")
    axis.set_ylim(-0.02, 1.02)
    axis.grid(alpha=0.3)


def _title(attack: str) -> str:
    return "clean" if attack == "none" else attack


def _defended(points: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    return ((point, row) for point in points for row in point["results"] if row["model"] == "defended")


def _is_numeric(points: list[dict[str, Any]], key: str) -> bool:
    return all(isinstance(point["changes"][key], int | float) and not isinstance(point["changes"][key], bool) for point in points)


def _errors(estimates: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Distances down and up to the interval's ends; rounding may put a value beyond one by an ulp."""
    return [[max(0.0, e["value"] - e["ci95"][0]) for e in estimates], [max(0.0, e["ci95"][1] - e["value"]) for e in estimates]]


def _dodged(costs: Sequence[float]) -> list[float]:
    """Equal costs set apart a little, that their intervals can be told from each other."""
    places = []
    for position, cost in enumerate(costs):
        equal = [i for i, other in enumerate(costs) if other == cost]
        places.append(cost * (1 + 0.02 * (equal.index(position) - (len(equal) - 1) / 2)))
    return places
