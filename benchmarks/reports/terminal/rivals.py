"""Tables of `purify rivals`."""

from rich import box
from rich.table import Table

from benchmarks.reports.terminal.columns import titled
from benchmarks.reports.text import difference_text, points, short_count, stacked
from benchmarks.runs.schema import RivalsResult


def rivals_tables(result: RivalsResult) -> list[Table]:
    """The contestants' accuracies and cost, and our attacks against the others', image by image."""
    rows = Table(
        title=(
            f"{result.images} images, {result.threat}, {result.iterations} iterations, EOT {result.eot}: "
            f"accuracy in % over {result.draws} draws"
        ),
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for name in ("model", "attack", "accuracy", "its own\nverdict", "forward", "backward", "seconds"):
        rows.add_column(name, no_wrap=True)
    for r in result.results:
        own = points(r.own_verdict.value) if r.own_verdict else "-"
        cost = (short_count(r.attack_cost.forward), short_count(r.attack_cost.backward))
        cells = (stacked(r.single), own, *cost, f"{r.seconds:.0f}")
        rows.add_row(r.model, f"{r.attack}\n{r.package}", *cells, end_section=True)
    title = "ours minus theirs, in points on the same images (negative: ours is stronger)"
    pairs = titled(title, ("model", "ours", "theirs", "difference\n[95 %]", "p", "verdict"))
    for p in result.paired:
        numbers = (difference_text(p, "\n"), f"{p.p_value:.3f}", p.verdict)
        pairs.add_row(p.model, p.ours, p.theirs.replace(" of ", "\n"), *numbers, end_section=True)
    return [rows, pairs]
