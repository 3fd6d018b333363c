"""Tables and comparisons of finished runs."""

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.runs import RunError


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a run. Raises RunError where there is none, or where it is of another schema."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"{folder} holds no readable summary.json: {error}") from error
    if not isinstance(summary, dict) or summary.get("schema") != 1:
        raise RunError(f"{path} is not a summary of schema 1")
    if not summary.get("complete"):
        raise RunError(f"{path}: the run is not finished; go on with it by `purify bench ... --out {folder} --resume`")
    return summary


def percent(estimate: dict[str, Any]) -> str:
    """Value and 95 % interval in percent."""
    low, high = estimate["ci95"]
    return f"{100 * estimate['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def table(summary: dict[str, Any]) -> Table:
    """The results of a run: accuracies in percent over their 95 % intervals, and network evaluations (NFE); fits 80 columns."""
    n = str(summary["draws"])
    result = Table(title=f"{summary['images']} images: accuracy in %, 95 % interval over images", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("model", "attack", "single\ndraw", f"worst\nof {n}", f"majority\nof {n}"):
        result.add_column(name, no_wrap=True)
    for name in ("NFE", "seconds"):
        result.add_column(name, justify="right", no_wrap=True)
    for r in summary["results"]:
        attack = r["attack"]
        if attack != "none":
            attack = f"{attack}\n{r['threat']}\n{r['iterations']} steps\nEOT {r['eot']}{', ' + r['gradient'] if r['gradient'] else ''}"
        cells = (f"{100 * e['value']:.1f}\n{100 * e['ci95'][0]:.1f}-{100 * e['ci95'][1]:.1f}" for e in (r["single"], r["worst_of"][n], r["majority"][n]))
        result.add_row(r["model"], attack, *cells, _short(r["network_evaluations"]), f"{r['seconds']:.0f}", end_section=True)
    return result


def _short(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k" if count >= 1e4 else str(count)


def paired_table(summary: dict[str, Any]) -> Table | None:
    """Every attack against the first on the same images, or None where there is one attack only."""
    if not summary["paired"]:
        return None
    result = Table(title="single-draw accuracy: difference in points on the same images", box=box.SIMPLE)
    for name in ("model", "attack", "compared with", "difference [95 %]", "p (sign flips)"):
        result.add_column(name)
    for p in summary["paired"]:
        low, high = p["ci95"]
        result.add_row(p["model"], p["attack"], p["reference"], f"{100 * p['value']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", f"{p['p_value']:.4f}")
    return result


def _effort(result: dict[str, Any]) -> str:
    return f"{result['iterations']} steps, EOT {result['eot']}"


def _attack(result: dict[str, Any]) -> str:
    return "none" if result["attack"] == "none" else f"{result['attack']} ({_effort(result)})"


def markdown(summaries: list[dict[str, Any]]) -> str:
    """The results of several runs as one Markdown table."""
    lines = ["| t* | steps | model | attack | gradient | single draw | worst of N | majority of N | N | images |", "|---|---|---|---|---|---|---|---|---|---|"]
    for summary in summaries:
        n = str(summary["draws"])
        for r in summary["results"]:
            cells = (r["t_star"] or "-", r["steps"] or "-", r["model"], _attack(r), r["gradient"] or "-", percent(r["single"]))
            tail = (percent(r["worst_of"][n]), percent(r["majority"][n]), n, summary["images"])
            lines.append("| " + " | ".join(map(str, (*cells, *tail))) + " |")
    return "\n".join(lines)


def curves(summaries: list[dict[str, Any]], key: str) -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """Single-draw and worst-of accuracy of the defended model against `key` ("t_star", "steps"), a line for each attack."""
    lines: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for summary in summaries:
        n = str(summary["draws"])
        for r in summary["results"]:
            if r["model"] == "defended":
                name = "clean" if r["attack"] == "none" else f"{_attack(r)}, {r['threat']}"
                lines.setdefault(f"{name}, single draw", []).append((r[key], r["single"]))
                lines.setdefault(f"{name}, worst of {n}", []).append((r[key], r["worst_of"][n]))
    return lines
