"""The table of `purify certify`."""

from rich import box
from rich.table import Table

from benchmarks.reports.text import percent
from benchmarks.runs.schema import CertifySummary


def certify_table(summary: CertifySummary) -> Table:
    """The results of a run, a column for each noise level: accuracies in percent with their 95 % intervals over
    images.
    """
    title = f"{summary.images} images, n0 = {summary.n0}, n = {summary.n}, alpha = {summary.alpha:g}; accuracies in %"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    results = summary.results
    table.add_column("")
    for r in results:
        table.add_column(f"sigma {r.sigma:g}", justify="right", no_wrap=True)
    for radius in results[0].certified:
        table.add_row(f"certified at L2 radius {radius}", *(percent(r.certified[radius]) for r in results))
    rows = {
        "average certified radius": [f"{r.average_radius:.3f}" for r in results],
        "largest radius that n draws can show": [f"{r.largest_radius:.3f}" for r in results],
        "images without a certificate": [str(r.abstained) for r in results],
        "smoothed, no radius": [percent(r.accuracy) for r in results],
        "one noisy draw, no certificate": [percent(r.single) for r in results],
        "network evaluations": [str(r.network_evaluations) for r in results],
        "seconds": [f"{r.seconds:.0f}" for r in results],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table
