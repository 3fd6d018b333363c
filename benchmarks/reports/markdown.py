"""Tables of finished runs in Markdown."""

from collections.abc import Iterable, Sequence

from benchmarks.reports.text import attack_of, difference_text, draws_text, percent, percent_or_dash, short_count
from benchmarks.runs.schema import MeasuredPoint, Points, Summary


def runs_table(summaries: Sequence[Summary]) -> str:
    """The results of several runs as one Markdown table, and what its numbers are."""
    columns = (
        "t*",
        "steps",
        "model",
        "attack",
        "gradient",
        "single draw",
        "worst of N",
        "majority of N",
        "own verdict",
        "N",
        "images",
        "NFE in all",
    )
    lines = _head(columns)
    for summary in summaries:
        n = summary.draws
        images = f"{summary.images}{' (reduced by --budget)' if summary.is_reduced else ''}"
        for r in summary.results:
            how = (r.t_star or "-", r.steps or "-", r.model, attack_of(r), r.gradient or "-")
            estimates = (r.single, r.worst_of[n], (r.majority or {}).get(n), r.own_verdict)
            cells = (*how, *map(percent_or_dash, estimates), n, images, short_count(r.network_evaluations))
            lines.append(_line(cells))
    about = (
        "Accuracies in % with 95 % intervals over images; N: fresh draws that judge. Own verdict: of attacks that keep"
        " one. NFE in all: images through the score network in that row, for the attack and its verdict."
    )
    return "\n".join([*lines, "", about])


def points_table(result: Points) -> str:
    """The points of a sweep or comparison as a Markdown table, a line for each point and attack, and what its numbers
    are.
    """
    n = draws_text(result.draws)
    columns = (
        "scheme" if result.kind == "compare" else "point",
        "NFE",
        "s",
        "clean",
        "difference",
        "attack",
        "single draw",
        f"worst of {n}",
        f"majority of {n}",
        "difference",
    )
    lines = _head(columns)
    for point in result.points:
        if isinstance(point, MeasuredPoint):
            lines += _point_lines(point)
        else:
            lines.append(_line((point.name, *3 * "-", point.state, *5 * "-")))
    images = "/".join(map(str, dict.fromkeys(point.images for point in result.measured)))
    about = (
        f"{images} images; accuracies in % with 95 % intervals over images; differences of the single draw from"
        f" `{result.reference}`, in points on the same images; NFE and s: network evaluations and seconds to purify"
        " and classify an image once."
    )
    return "\n".join([*lines, "", about])


def _point_lines(point: MeasuredPoint) -> list[str]:
    clean, *attacked = point.defended
    head = (
        point.name,
        f"{point.network_evaluations:g}",
        f"{point.seconds:.2g}",
        percent(clean.single),
        difference_text(clean.paired),
    )
    tails = [
        (
            f"{row.attack}, {row.threat}",
            *map(percent_or_dash, (row.single, row.worst_of_all, row.majority_of_all)),
            difference_text(row.paired),
        )
        for row in attacked
    ]
    return [_line((*head, *tail)) for tail in tails or [tuple(5 * "-")]]


def _head(columns: Sequence[str]) -> list[str]:
    return [_line(columns), "|" + len(columns) * "---|"]


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
