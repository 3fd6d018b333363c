"""The table of `purify sweep` and `purify compare`."""

import textwrap

from rich.table import Table

from benchmarks.reports.terminal.columns import WIDTH, titled
from benchmarks.reports.text import difference_text, draws_text, stacked
from benchmarks.runs.schema import MeasuredPoint, PointRow, Points


def sweep_table(result: Points) -> Table:
    """The defence at every point of a sweep or a comparison; fits 80 columns.

    Below a point's name: network evaluations (NFE) and seconds to purify an image once. Below a difference: in what the
    attacks differ, if they do.
    """
    n = draws_text(result.draws)
    table = titled(
        f"accuracy in %, 95 % interval over images; differences in points from {result.reference} on the same images",
        ("point", "attack", "single\ndraw", f"worst\nof {n}", f"majority\nof {n}", "difference"),
    )
    for point in result.points:
        name = "\n".join(line for part in point.name.split(",") for line in textwrap.wrap(part, WIDTH))
        if not isinstance(point, MeasuredPoint):
            table.add_row(name, point.state, *4 * ["-"], end_section=True)
            continue
        name += f"\n{point.network_evaluations:g} NFE\n{point.seconds:.2g} s"
        rows = list(point.defended)
        for number, row in enumerate(rows):
            table.add_row("" if number else name, *_cells(row), end_section=row is rows[-1])
    return table


def _cells(row: PointRow) -> list[str]:
    attack = "none" if row.attack == "none" else f"{row.attack}\n{row.threat}"
    gap = "\n".join((difference_text(row.paired, "\n"), *(row.note or "").split(", "))).rstrip()
    return [attack, *(stacked(e) for e in (row.single, row.worst_of_all, row.majority_of_all)), gap]
