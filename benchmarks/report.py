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
            attack += "\nfixed noise" if r["randomness"] == "fixed" else ""
            attack += f"\nits own verdict:\n{percent(r['own_verdict'])}" if r["own_verdict"] else ""
        cells = (_stacked(e) for e in (r["single"], r["worst_of"][n], (r["majority"] or {}).get(n)))
        result.add_row(r["model"], attack, *cells, _short(r["network_evaluations"]), f"{r['seconds']:.0f}", end_section=True)
    return result


def _stacked(estimate: dict[str, Any] | None) -> str:
    """Value over interval in percent; "-" where there is none."""
    return "-" if estimate is None else f"{100 * estimate['value']:.1f}\n{100 * estimate['ci95'][0]:.1f}-{100 * estimate['ci95'][1]:.1f}"


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


def audit_tables(result: dict[str, Any]) -> list[Table]:
    """The tables of an audit: gradients at the configured setting, cost, the sweep over t* and steps, and DiffPure's conventions."""
    at = result["gradients"][0]
    gradients = _table(
        f"gradients at t* = {at['t_star']}, {at['grid']} grid, {result['images']} images, against the float64 reference",
        ("mode", "steps", "precision", "relative\nerror", "worst\nimage", "cosine\nmedian", "min", "right\nsigns %", "value\nerror"),
    )
    for row in result["gradients"]:
        cosine = row["cosine"]
        errors = (f"{row['relative_error']:.1e}", f"{row['relative_error_images']['max']:.1e}")
        gradients.add_row(
            row["mode"],
            str(row["steps"]),
            row["precision"],
            *errors,
            f"{cosine['median']:.3f}",
            f"{cosine['min']:.3f}",
            _points(row["sign_agreement"]),
            f"{row['value_error']:.0e}",
        )

    memory = {row["mode"]: _memory(row) for row in result["memory"]}
    cost = _table("cost of value and gradient", ("mode", "time\n(bare = 1)", "peak memory\nin MiB", "MiB\na step", "one\nstate"))
    for mode, ratio in list(result["time"]["ratio"].items())[1:]:  # the first are the bare evaluations
        cost.add_row(mode, f"{ratio:.1f}", *memory.get(mode, ("-", "-", "-")))

    tables = [gradients, cost]
    settings = sorted({(row["t_star"], row["steps"]) for row in result["sweep"]})
    if settings:
        modes = list(dict.fromkeys(row["mode"] for row in result["sweep"] if row["mode"] != "backprop"))
        sweep = _table("relative error (median cosine) in equal steps", ("t*", "steps", *modes))
        cells = {(row["t_star"], row["steps"], row["mode"]): f"{row['relative_error']:.1e} ({row['cosine']['median']:.2f})" for row in result["sweep"]}
        for t_star, steps in settings:
            sweep.add_row(str(t_star), str(steps), *(cells[t_star, steps, mode] for mode in modes))
        tables.append(sweep)

    if not result["conventions"]:
        return tables
    conventions = _table("DiffPure's conventions, same noise", ("convention", "accuracy %", "mean change of a pixel", "predictions changed %"))
    for row in result["conventions"]:
        conventions.add_row(row["convention"], _points(row["accuracy"]), f"{row['mean_change']:.1e}", _points(row["predictions_changed"]))
    return [*tables, conventions]


def _memory(row: dict[str, Any]) -> tuple[str, str, str]:
    """Peaks, growth and the size of a state."""
    peaks = [peak if isinstance(peak, str) else f"{peak:.0f}" for peak in row["peak_mib"]]
    growth = "-" if row["mib_per_step"] is None else f"{row['mib_per_step']:.2f}"
    return "\n".join(f"{peak} ({n} steps)" for peak, n in zip(peaks, row["steps"], strict=True)), growth, f"{row['state_mib']:.2f}"


def _table(title: str, columns: tuple[str, ...]) -> Table:
    result = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in columns:
        result.add_column(name)
    return result


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _effort(result: dict[str, Any]) -> str:
    return f"{result['iterations']} steps, EOT {result['eot']}" + (", fixed noise" if result.get("randomness") == "fixed" else "")


def _attack(result: dict[str, Any]) -> str:
    return "none" if result["attack"] == "none" else f"{result['attack']} ({_effort(result)})"


def markdown(summaries: list[dict[str, Any]]) -> str:
    """The results of several runs as one Markdown table."""
    lines = ["| t* | steps | model | attack | gradient | single draw | worst of N | majority of N | own verdict | N | images |", "|" + 11 * "---|"]
    for summary in summaries:
        n = str(summary["draws"])
        for r in summary["results"]:
            cells = (r["t_star"] or "-", r["steps"] or "-", r["model"], _attack(r), r["gradient"] or "-", percent(r["single"]))
            own, majority = r.get("own_verdict"), (r["majority"] or {}).get(n)
            tail = (percent(r["worst_of"][n]), majority and percent(majority) or "-", own and percent(own) or "-", n, summary["images"])
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
