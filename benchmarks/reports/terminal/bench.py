"""Tables of `purify bench`."""

import textwrap

from rich import box
from rich.table import Table

from benchmarks.reports.terminal.columns import WIDTH, titled
from benchmarks.reports.text import difference_text, length, short_count, stacked, ways, ways_of_pair
from benchmarks.runs.cost import CostEstimate
from benchmarks.runs.durations import duration
from benchmarks.runs.schema import Result, Summary


def table(summary: Summary) -> Table:
    """The results of a run: accuracies in percent over their 95 % intervals, and network evaluations (NFE); fits 80
    columns.

    Under an attack stands what it asked of the attacked model: images forward, and how many of them backward too.
    """
    n = summary.draws
    title = f"{summary.images} images: accuracy in %, 95 % interval over images"
    result = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("model", "attack", "single\ndraw", f"worst\nof {n}", f"majority\nof {n}"):
        result.add_column(name, no_wrap=True)
    for name in ("NFE", "time\nin s"):
        result.add_column(name, justify="right", no_wrap=True)
    for r in summary.results:
        cells = (stacked(e) for e in (r.single, r.worst_of[n], (r.majority or {}).get(n)))
        result.add_row(
            r.model, _attack(r), *cells, short_count(r.network_evaluations), f"{r.seconds:.0f}", end_section=True
        )
    return result


def _attack(r: Result) -> str:
    """What the attack was, line by line."""
    lines = [r.attack]
    if r.attack != "none":
        lines += [r.threat, length(r), f"EOT {r.eot}{', ' + r.gradient if r.gradient else ''}"]
        lines += [line for way in ways(r) for line in textwrap.wrap(way, WIDTH)]
        lines += ["its own verdict:", stacked(r.own_verdict)] if r.own_verdict else []
        lines += ["target reached:", stacked(r.reached)] if r.reached else []
        if r.attack_cost is not None:
            lines.append(f"cost {short_count(r.attack_cost.forward)} / {short_count(r.attack_cost.backward)}")
    if r.undefined:
        lines.append(f"undefined: {r.undefined} draws")
    return "\n".join(lines)


def paired_table(summary: Summary) -> Table | None:
    """Every attack against the first on the same images, or None where there is one attack only."""
    if not summary.paired:
        return None
    result = Table(title="single-draw accuracy: difference in points on the same images", box=box.SIMPLE)
    for name in ("model", "attack", "compared with", "difference [95 %]", "p (sign flips)"):
        result.add_column(name)
    for p in summary.paired:
        result.add_row(
            p.model, ", ".join((p.attack, *ways_of_pair(p))), p.reference, difference_text(p), f"{p.p_value:.4f}"
        )
    return result


def estimate_table(cost: CostEstimate, draws: int) -> Table:
    """What a run is going to cost, row by row."""
    result = titled(
        f"about {duration(cost.seconds)} and {cost.memory_mib} MiB for {cost.images} images and {draws} draws, less"
        " where images leave an attack early",
        ("model", "attack", "forward", "backward", "NFE", "time"),
    )
    for row in cost.rows:
        evaluations = (short_count(cost.images * each) for each in (row.forward, row.backward, row.network_evaluations))
        result.add_row(row.model, row.attack, *evaluations, duration(cost.images * row.seconds))
    return result
