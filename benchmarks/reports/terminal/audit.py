"""Tables of `purify audit`."""

from collections.abc import Sequence

from rich.table import Table

from benchmarks.reports.terminal.columns import titled
from benchmarks.reports.text import points
from benchmarks.runs.schema import AuditResult
from benchmarks.runs.schema.audit import ConventionRow, GradientRow, MemoryRow


def audit_tables(result: AuditResult) -> list[Table]:
    """The tables of an audit: gradients at the configured setting, cost, the sweep over t* and steps, and DiffPure's
    conventions.
    """
    tables = [_gradients(result), _cost(result)]
    if result.sweep:
        tables.append(_sweep(result.sweep))
    if result.conventions:
        tables.append(_conventions(result.conventions))
    return tables


def _gradients(result: AuditResult) -> Table:
    at = result.gradients[0]
    table = titled(
        f"gradients at t* = {at.t_star}, {at.grid} grid, {result.images} images, against the float64 reference",
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
    for row in result.gradients:
        table.add_row(
            row.mode,
            str(row.steps),
            row.precision,
            f"{row.relative_error:.1e}",
            f"{row.relative_error_images.max:.1e}",
            f"{row.cosine.median:.3f}",
            f"{row.cosine.min:.3f}",
            points(row.sign_agreement),
            f"{row.value_error:.0e}",
        )
    return table


def _cost(result: AuditResult) -> Table:
    memory = {row.mode: _memory(row) for row in result.memory}
    table = titled(
        "cost of value and gradient", ("mode", "time\n(bare = 1)", "peak memory\nin MiB", "MiB\na step", "one\nstate")
    )
    ratios = result.time.ratio if result.time is not None else {}
    for mode, ratio in list(ratios.items())[1:]:  # the first are the bare evaluations
        table.add_row(mode, f"{ratio:.1f}", *memory.get(mode, ("-", "-", "-")))
    return table


def _memory(row: MemoryRow) -> tuple[str, str, str]:
    """Peaks, growth and the size of a state."""
    peaks = [peak if isinstance(peak, str) else f"{peak:.0f}" for peak in row.peak_mib]
    growth = "-" if row.mib_per_step is None else f"{row.mib_per_step:.2f}"
    return (
        "\n".join(f"{peak} ({n} steps)" for peak, n in zip(peaks, row.steps, strict=True)),
        growth,
        f"{row.state_mib:.2f}",
    )


def _sweep(rows: Sequence[GradientRow]) -> Table:
    modes = list(dict.fromkeys(row.mode for row in rows if row.mode != "backprop"))
    table = titled("relative error (median cosine) in equal steps", ("t*", "steps", *modes))
    cells = {(row.t_star, row.steps, row.mode): f"{row.relative_error:.1e} ({row.cosine.median:.2f})" for row in rows}
    for t_star, steps in sorted({(row.t_star, row.steps) for row in rows}):
        table.add_row(str(t_star), str(steps), *(cells[t_star, steps, mode] for mode in modes))
    return table


def _conventions(rows: Sequence[ConventionRow]) -> Table:
    table = titled(
        "DiffPure's conventions, same noise",
        ("convention", "accuracy %", "mean change of a pixel", "predictions changed %"),
    )
    for row in rows:
        changed = points(row.predictions_changed)
        table.add_row(row.convention, points(row.accuracy), f"{row.mean_change:.1e}", changed)
    return table
