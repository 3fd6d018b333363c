"""Tables and comparisons of finished runs."""

import json
import textwrap
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.experiments.cost_estimate import CostEstimate, duration, reduction_lines
from benchmarks.experiments.diagnostics import COMPARISONS, LEAST_IMAGES, SIGNS
from benchmarks.runs.folder import RunError

_WIDTH = 17  # of the column of attacks, so that tables fit 80 columns


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a run. Raises RunError where there is none, or where it is of another schema."""
    path = folder / "summary.json"
    summary = _read(path)
    if str(summary.get("schema")).startswith("certify"):
        raise RunError(
            f"{folder} is a run of `purify certify`: it holds certified radii, which do not go into a table of"
            f" accuracies under attack; its own table is printed by `purify certify ... --out {folder} --resume`"
        )
    if summary.get("schema") != 1:
        raise RunError(f"{path} is not a summary of schema 1")
    if not summary.get("complete"):
        raise RunError(f"{path}: the run is not finished; go on with it by `purify bench ... --out {folder} --resume`")
    return summary


def read_points(folder: Path) -> dict[str, Any] | None:
    """sweep.json or compare.json of a folder, None where it has neither. Raises RunError for one that is not readable
    or of another schema.
    """
    for name in ("sweep.json", "compare.json"):
        path = folder / name
        if path.is_file():
            result = _read(path)
            if result.get("schema") != 1:
                raise RunError(f"{path} is not of schema 1")
            return result
    return None


def _read(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises RunError where there is none."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path.parent} holds no readable {path.name}: {error}") from error
    if not isinstance(values, dict):
        raise RunError(f"{path} holds no mapping but {type(values).__name__}")
    return values


def percent(estimate: dict[str, Any]) -> str:
    """Value and 95 % interval in percent."""
    low, high = estimate["ci95"]
    return f"{100 * estimate['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def table(summary: dict[str, Any]) -> Table:
    """The results of a run: accuracies in percent over their 95 % intervals, and network evaluations (NFE); fits 80
    columns.

    Under an attack stands what it asked of the attacked model: images forward, and how many of them backward too.
    """
    n = str(summary["draws"])
    title = f"{summary['images']} images: accuracy in %, 95 % interval over images"
    result = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("model", "attack", "single\ndraw", f"worst\nof {n}", f"majority\nof {n}"):
        result.add_column(name, no_wrap=True)
    for name in ("NFE", "time\nin s"):
        result.add_column(name, justify="right", no_wrap=True)
    for r in summary["results"]:
        attack = r["attack"]
        if attack != "none":
            attack = (
                f"{attack}\n{r['threat']}\n{_length(r)}\nEOT {r['eot']}{', ' + r['gradient'] if r['gradient'] else ''}"
            )
            attack += "".join(f"\n{line}" for way in _ways(r) for line in textwrap.wrap(way, _WIDTH))
            attack += f"\nits own verdict:\n{_stacked(r['own_verdict'])}" if r["own_verdict"] else ""
            attack += f"\ntarget reached:\n{_stacked(r['reached'])}" if r.get("reached") else ""
            attack += f"\n{_cost(r['attack_cost'])}" if r.get("attack_cost") else ""
        attack += f"\nundefined: {r['undefined']} draws" if r.get("undefined") else ""
        cells = (_stacked(e) for e in (r["single"], r["worst_of"][n], (r["majority"] or {}).get(n)))
        result.add_row(
            r["model"], attack, *cells, short_count(r["network_evaluations"]), f"{r['seconds']:.0f}", end_section=True
        )
    return result


def _stacked(estimate: dict[str, Any] | None) -> str:
    """Value over interval in percent; "-" where there is none."""
    return (
        "-"
        if estimate is None
        else f"{100 * estimate['value']:.1f}\n{100 * estimate['ci95'][0]:.1f}-{100 * estimate['ci95'][1]:.1f}"
    )


def _cost(cost: dict[str, int]) -> str:
    return f"cost {short_count(cost['forward'])} / {short_count(cost['backward'])}"


def short_count(count: float) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k" if count >= 1e4 else f"{count:.0f}"


def paired_table(summary: dict[str, Any]) -> Table | None:
    """Every attack against the first on the same images, or None where there is one attack only."""
    if not summary["paired"]:
        return None
    result = Table(title="single-draw accuracy: difference in points on the same images", box=box.SIMPLE)
    for name in ("model", "attack", "compared with", "difference [95 %]", "p (sign flips)"):
        result.add_column(name)
    for p in summary["paired"]:
        result.add_row(
            p["model"], ", ".join((p["attack"], *_ways(p))), p["reference"], difference_text(p), f"{p['p_value']:.4f}"
        )
    return result


def difference_text(paired: dict[str, Any] | None, separator: str = " ") -> str:
    """A paired difference and its interval in points; "-" where there is none."""
    if paired is None:
        return "-"
    low, high = paired["ci95"]
    return f"{100 * paired['value']:+.1f}{separator}[{100 * low:+.1f}, {100 * high:+.1f}]"


def budget_lines(summary: dict[str, Any]) -> list[str]:
    """What a time limit took from a run, if anything."""
    return reduction_lines(summary["budget"]) if is_reduced(summary) else []


def is_reduced(summary: dict[str, Any]) -> bool:
    return bool((summary.get("budget") or {}).get("reduced"))


def flag_lines(summary: dict[str, Any]) -> list[str]:
    """The signs of a broken evaluation, each with what was seen and what to do; what was not looked for goes unsaid."""
    lines = []
    for flag in summary.get("flags", []):
        lines.append(f"FLAG  {flag['model']}, {flag['attack']}: {flag['sign']}")
        lines += [f"      seen: {flag['seen']}", f"      do: {flag['advice']}"]
    return lines


def diagnosis_lines(summary: dict[str, Any]) -> list[str]:
    """What was looked for without a finding, and what could not be."""
    images = summary["looked_for"]
    flagged = {flag["sign"] for flag in summary["flags"]}
    few = [sign for sign in images if sign in COMPARISONS and images[sign] < LEAST_IMAGES]
    parts = {
        "looked for and not found": [sign for sign in images if sign not in flagged and sign not in few],
        f"too few images, {LEAST_IMAGES} are needed": few,
        "no rows to see it in": [sign for sign in SIGNS if sign not in images],
    }
    return [f"diagnosis, {what}: {', '.join(signs)}" for what, signs in parts.items() if signs]


def estimate_table(cost: CostEstimate, draws: int) -> Table:
    """What a run is going to cost, row by row."""
    result = _table(
        f"about {duration(cost.seconds)} and {cost.memory_mib} MiB for {cost.images} images and {draws} draws, less"
        " where images leave an attack early",
        ("model", "attack", "forward", "backward", "NFE", "time"),
    )
    for row in cost.rows:
        evaluations = (
            short_count(cost.images * getattr(row, name)) for name in ("forward", "backward", "network_evaluations")
        )
        result.add_row(row.model, row.attack, *evaluations, duration(cost.images * row.seconds))
    return result


def rivals_tables(result: dict[str, Any]) -> list[Table]:
    """The contestants' accuracies and cost, and our attacks against the others', image by image."""
    rows = Table(
        title=(
            f"{result['images']} images, {result['threat']}, {result['iterations']} iterations, EOT {result['eot']}: "
            f"accuracy in % over {result['draws']} draws"
        ),
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for name in ("model", "attack", "accuracy", "its own\nverdict", "forward", "backward", "seconds"):
        rows.add_column(name, no_wrap=True)
    for r in result["results"]:
        own = _points(r["own_verdict"]["value"]) if r["own_verdict"] else "-"
        cost = [short_count(r["attack_cost"][name]) for name in ("forward", "backward")]
        rows.add_row(
            r["model"],
            f"{r['attack']}\n{r['package']}",
            _stacked(r["single"]),
            own,
            *cost,
            f"{r['seconds']:.0f}",
            end_section=True,
        )
    title = "ours minus theirs, in points on the same images (negative: ours is stronger)"
    pairs = _table(title, ("model", "ours", "theirs", "difference\n[95 %]", "p", "verdict"))
    for p in result["paired"]:
        cells = (difference_text(p, "\n"), f"{p['p_value']:.3f}", p["verdict"])
        pairs.add_row(p["model"], p["ours"], p["theirs"].replace(" of ", "\n"), *cells, end_section=True)
    return [rows, pairs]


def sweep_table(result: dict[str, Any]) -> Table:
    """The defence at every point of a sweep or a comparison; fits 80 columns.

    Below a point's name: network evaluations (NFE) and seconds to purify an image once. Below a difference: in what the
    attacks differ, if they do.
    """
    table = _table(
        f"accuracy in %, 95 % interval over images; differences in points from {result['reference']} on the same"
        " images",
        (
            "point",
            "attack",
            "single\ndraw",
            f"worst\nof {draws_of(result)}",
            f"majority\nof {draws_of(result)}",
            "difference",
        ),
    )
    for point in result["points"]:
        name = "\n".join(line for part in point["name"].split(",") for line in textwrap.wrap(part, _WIDTH))
        if not point["results"]:
            table.add_row(name, point["state"], *4 * ["-"], end_section=True)
            continue
        name += f"\n{point['network_evaluations']:g} NFE\n{point['seconds']:.2g} s"
        rows = [row for row in point["results"] if row["model"] == "defended"]
        for number, row in enumerate(rows):
            attack = "none" if row["attack"] == "none" else f"{row['attack']}\n{row['threat']}"
            cells = (_stacked(e) for e in (row["single"], *of_all_draws(row)))
            # files of old have no notes
            gap = "\n".join((difference_text(row["paired"], "\n"), *(row.get("note") or "").split(", "))).rstrip()
            table.add_row("" if number else name, attack, *cells, gap, end_section=row is rows[-1])
    return table


def draws_of(result: dict[str, Any]) -> str:
    """How many draws the points of a sweep have, or N where that differs."""
    counts = {point["draws"] for point in result["points"] if point["results"]}
    return str(counts.pop()) if len(counts) == 1 else "N"


def of_all_draws(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Worst of, and majority of, all draws, however many they are."""
    return next(iter(row["worst_of"].values())), next(iter((row["majority"] or {}).values()), None)


def failure_lines(result: dict[str, Any]) -> list[str]:
    """The points that failed, with the reason."""
    failed = (point for point in result["points"] if point["state"] == "failed")
    return [
        f"FAILED  {point['name']}: {point['error']} (more in {point['folder']}/error.txt; --resume tries it again)"
        for point in failed
    ]


def audit_tables(result: dict[str, Any]) -> list[Table]:
    """The tables of an audit: gradients at the configured setting, cost, the sweep over t* and steps, and DiffPure's
    conventions.
    """
    at = result["gradients"][0]
    gradients = _table(
        f"gradients at t* = {at['t_star']}, {at['grid']} grid, {result['images']} images, against the float64"
        " reference",
        (
            "mode",
            "steps",
            "precision",
            "relative\nerror",
            "worst\nimage",
            "cosine\nmedian",
            "min",
            "right\nsigns %",
            "value\nerror",
        ),
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
    cost = _table(
        "cost of value and gradient", ("mode", "time\n(bare = 1)", "peak memory\nin MiB", "MiB\na step", "one\nstate")
    )
    for mode, ratio in list(result["time"]["ratio"].items())[1:]:  # the first are the bare evaluations
        cost.add_row(mode, f"{ratio:.1f}", *memory.get(mode, ("-", "-", "-")))

    tables = [gradients, cost]
    settings = sorted({(row["t_star"], row["steps"]) for row in result["sweep"]})
    if settings:
        modes = list(dict.fromkeys(row["mode"] for row in result["sweep"] if row["mode"] != "backprop"))
        sweep = _table("relative error (median cosine) in equal steps", ("t*", "steps", *modes))
        cells = {
            (row["t_star"], row["steps"], row["mode"]): f"{row['relative_error']:.1e} ({row['cosine']['median']:.2f})"
            for row in result["sweep"]
        }
        for t_star, steps in settings:
            sweep.add_row(str(t_star), str(steps), *(cells[t_star, steps, mode] for mode in modes))
        tables.append(sweep)

    if not result["conventions"]:
        return tables
    conventions = _table(
        "DiffPure's conventions, same noise",
        ("convention", "accuracy %", "mean change of a pixel", "predictions changed %"),
    )
    for row in result["conventions"]:
        conventions.add_row(
            row["convention"],
            _points(row["accuracy"]),
            f"{row['mean_change']:.1e}",
            _points(row["predictions_changed"]),
        )
    return [*tables, conventions]


def _memory(row: dict[str, Any]) -> tuple[str, str, str]:
    """Peaks, growth and the size of a state."""
    peaks = [peak if isinstance(peak, str) else f"{peak:.0f}" for peak in row["peak_mib"]]
    growth = "-" if row["mib_per_step"] is None else f"{row['mib_per_step']:.2f}"
    return (
        "\n".join(f"{peak} ({n} steps)" for peak, n in zip(peaks, row["steps"], strict=True)),
        growth,
        f"{row['state_mib']:.2f}",
    )


def _table(title: str, columns: tuple[str, ...]) -> Table:
    result = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in columns:
        result.add_column(name)
    return result


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _length(result: dict[str, Any]) -> str:
    return f"{result['iterations']} {result.get('unit', 'steps')}"


def _effort(result: dict[str, Any]) -> str:
    return ", ".join((_length(result), f"EOT {result['eot']}", *_ways(result)))


def _ways(result: dict[str, Any]) -> list[str]:
    """How an attack differs from one that differentiates the deployed model and wants any wrong class; keys that runs
    of old do not have count as usual.
    """
    through, target, surrogate = (result.get(key) for key in ("through", "target", "surrogate"))
    ways = ["fixed noise"] if result.get("randomness") == "fixed" else []
    ways += ["transfer"] if through == "classifier" else []
    ways += (
        ["surrogate " + " ".join(f"{k}={v}" for k, v in (surrogate or {}).items())] if through == "surrogate" else []
    )
    return ways + ([] if target is None else [f"target {target}"])


def attack_of(result: dict[str, Any]) -> str:
    return "none" if result["attack"] == "none" else f"{result['attack']} ({_effort(result)})"


def curves(summaries: list[dict[str, Any]], key: str) -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """Single-draw and worst-of accuracy of the defended model against `key` ("t_star", "steps"), a line for each
    attack.
    """
    lines: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for summary in summaries:
        n = str(summary["draws"])
        for r in summary["results"]:
            if r["model"] == "defended":
                name = "clean" if r["attack"] == "none" else f"{attack_of(r)}, {r['threat']}"
                lines.setdefault(f"{name}, single draw", []).append((r[key], r["single"]))
                lines.setdefault(f"{name}, worst of {n}", []).append((r[key], r["worst_of"][n]))
    return lines
