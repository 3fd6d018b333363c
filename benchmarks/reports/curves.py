"""Accuracies over the setting in which several runs differ."""

from collections.abc import Sequence
from typing import Any

from benchmarks.evaluation.statistics import Estimate
from benchmarks.reports.text import attack_of
from benchmarks.runs.schema import Summary


def curves(summaries: Sequence[Summary], key: str) -> dict[str, list[tuple[Any, Estimate]]]:
    """Single-draw and worst-of accuracy of the defended model against `key` ("t_star", "steps"), a line for each
    attack.
    """
    lines: dict[str, list[tuple[Any, Estimate]]] = {}
    for summary in summaries:
        n = summary.draws
        for r in summary.results:
            if r.model == "defended":
                name = "clean" if r.attack == "none" else f"{attack_of(r)}, {r.threat}"
                lines.setdefault(f"{name}, single draw", []).append((getattr(r, key), r.single))
                lines.setdefault(f"{name}, worst of {n}", []).append((getattr(r, key), r.worst_of[n]))
    return lines
