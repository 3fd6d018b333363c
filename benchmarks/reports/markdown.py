"""Tables of finished runs in Markdown."""

from typing import Any

from benchmarks.reports.terminal import (
    attack_of,
    difference_text,
    draws_of,
    is_reduced,
    of_all_draws,
    percent,
    short_count,
)


def runs_table(summaries: list[dict[str, Any]]) -> str:
    """The results of several runs as one Markdown table, and what its numbers are."""
    lines = [
        (
            "| t* | steps | model | attack | gradient | single draw | worst of N | majority of N | own verdict | N |"
            " images | NFE in all |"
        ),
        "|" + 12 * "---|",
    ]
    for summary in summaries:
        n = str(summary["draws"])
        images = f"{summary['images']}{' (reduced by --budget)' if is_reduced(summary) else ''}"
        for r in summary["results"]:
            cells = (
                r["t_star"] or "-",
                r["steps"] or "-",
                r["model"],
                attack_of(r),
                r["gradient"] or "-",
                percent(r["single"]),
            )
            own, majority = r.get("own_verdict"), (r["majority"] or {}).get(n)
            tail = (
                percent(r["worst_of"][n]),
                majority and percent(majority) or "-",
                own and percent(own) or "-",
                n,
                images,
                short_count(r["network_evaluations"]),
            )
            lines.append("| " + " | ".join(map(str, (*cells, *tail))) + " |")
    about = (
        "Accuracies in % with 95 % intervals over images; N: fresh draws that judge. Own verdict: of attacks that keep"
        " one. NFE in all: images through the score network in that row, for the attack and its verdict."
    )
    return "\n".join([*lines, "", about])


def points_table(result: dict[str, Any]) -> str:
    """The points of a sweep or comparison as a Markdown table, a line for each point and attack, and what its numbers
    are.
    """
    n = draws_of(result)
    first = "scheme" if result["kind"] == "compare" else "point"
    columns = (
        first,
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
    lines = ["| " + " | ".join(columns) + " |", "|" + len(columns) * "---|"]
    for point in result["points"]:
        if not point["results"]:
            lines.append("| " + " | ".join((point["name"], *3 * "-", point["state"], *5 * "-")) + " |")
            continue
        clean, *attacked = (row for row in point["results"] if row["model"] == "defended")
        head = (
            point["name"],
            f"{point['network_evaluations']:g}",
            f"{point['seconds']:.2g}",
            percent(clean["single"]),
            difference_text(clean["paired"]),
        )
        for row in attacked:
            estimates = (row["single"], *of_all_draws(row))
            cells = (
                f"{row['attack']}, {row['threat']}",
                *(e and percent(e) or "-" for e in estimates),
                difference_text(row["paired"]),
            )
            lines.append("| " + " | ".join((*head, *cells)) + " |")
        if not attacked:
            lines.append("| " + " | ".join((*head, *5 * "-")) + " |")
    images = "/".join(map(str, dict.fromkeys(point["images"] for point in result["points"] if point["results"])))
    about = (
        f"{images} images; accuracies in % with 95 % intervals over images; differences of the single draw from"
        f" `{result['reference']}`, in points on the same images; NFE and s: network evaluations and seconds to purify"
        " and classify an image once."
    )
    return "\n".join([*lines, "", about])
