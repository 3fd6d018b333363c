"""What stands below the tables, line by line: what a time limit took, signs of a broken evaluation, failures."""

from benchmarks.evaluation.signs import COMPARISONS, LEAST_IMAGES, SIGNS
from benchmarks.reports.text import reduction_lines
from benchmarks.runs.schema import Points, Summary


def budget_lines(summary: Summary) -> list[str]:
    """What a time limit took from a run, if anything."""
    return reduction_lines(summary.budget) if summary.budget is not None and summary.is_reduced else []


def flag_lines(summary: Summary) -> list[str]:
    """The signs of a broken evaluation, each with what was seen and what to do; what was not looked for goes unsaid."""
    lines = []
    for flag in summary.flags:
        lines.append(f"FLAG  {flag.model}, {flag.attack}: {flag.sign}")
        lines += [f"      seen: {flag.seen}", f"      do: {flag.advice}"]
    return lines


def diagnosis_lines(summary: Summary) -> list[str]:
    """What was looked for without a finding, and what could not be."""
    images = summary.looked_for
    flagged = {flag.sign for flag in summary.flags}
    few = [sign for sign in images if sign in COMPARISONS and images[sign] < LEAST_IMAGES]
    parts = {
        "looked for and not found": [sign for sign in images if sign not in flagged and sign not in few],
        f"too few images, {LEAST_IMAGES} are needed": few,
        "no rows to see it in": [sign for sign in SIGNS if sign not in images],
    }
    return [f"diagnosis, {what}: {', '.join(signs)}" for what, signs in parts.items() if signs]


def failure_lines(result: Points) -> list[str]:
    """The points that failed, with the reason."""
    return [
        f"FAILED  {point.name}: {point.error} (more in {point.folder}/error.txt; --resume tries it again)"
        for point in result.points
        if point.state == "failed"
    ]
