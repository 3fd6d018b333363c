"""`purify report`."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli.machine_readable import in_folder
from benchmarks.cli.session import Result, Session, command


@command
def report(
    session: Session,
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished `purify bench` runs, or of sweeps and comparisons.")
    ],
    curve: Annotated[
        str | None, typer.Option(help="Draw accuracy against this setting, t_star or steps, into --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="PNG file of the curve.")] = None,
) -> Result:
    """Print the results of several runs as one Markdown table, and draw a curve over them; print the tables of sweeps
    and comparisons again.
    """
    from benchmarks.reports import markdown
    from benchmarks.reports import terminal as reports
    from benchmarks.runs.folder import RunError
    from benchmarks.runs.schema import Points, Summary

    found = [reports.read_points(folder) or reports.read_summary(folder) for folder in runs]
    summaries = [result for result in found if isinstance(result, Summary)]
    for result in (result for result in found if isinstance(result, Points)):
        session.show(reports.sweep_table(result))
        for line in reports.failure_lines(result):
            session.error(line)
    if summaries:
        session.print(markdown.runs_table(summaries))
    if curve is not None:
        if curve not in ("t_star", "steps"):
            raise RunError(f"--curve {curve!r} is not one of t_star, steps")
        if out is None:
            raise RunError("--curve needs --out FILE.png")
        if not summaries:
            raise RunError("--curve draws over bench runs: give the folders of a sweep's points, or see its sweep.png")
        from benchmarks.reports.figures import save_curve

        save_curve(curve, reports.curves(summaries, curve), out)
    return [in_folder(folder, result) for folder, result in zip(runs, found, strict=True)]
