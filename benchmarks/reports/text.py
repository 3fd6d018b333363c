"""Numbers and attacks in words, as all reports write them."""

from collections.abc import Mapping
from typing import Any, Protocol

from benchmarks.evaluation.statistics import Estimate
from benchmarks.runs.durations import duration
from benchmarks.runs.schema import Budget, Paired, Result


class Interval(Protocol):
    """A value with its 95 % interval, an `Estimate` or a paired difference for instance."""

    @property
    def value(self) -> float: ...

    @property
    def ci95(self) -> tuple[float, float]: ...


def points(fraction: float) -> str:
    """A fraction in percent."""
    return f"{100 * fraction:.1f}"


def percent(estimate: Interval) -> str:
    """Value and 95 % interval in percent."""
    low, high = estimate.ci95
    return f"{points(estimate.value)} [{points(low)}, {points(high)}]"


def percent_or_dash(estimate: Interval | None) -> str:
    """`percent`; "-" where there is none."""
    return "-" if estimate is None else percent(estimate)


def stacked(estimate: Estimate | None) -> str:
    """Value over interval in percent; "-" where there is none."""
    if estimate is None:
        return "-"
    low, high = estimate.ci95
    return f"{points(estimate.value)}\n{points(low)}-{points(high)}"


def difference_text(paired: Interval | None, separator: str = " ") -> str:
    """A paired difference and its interval in points; "-" where there is none."""
    if paired is None:
        return "-"
    low, high = paired.ci95
    return f"{100 * paired.value:+.1f}{separator}[{100 * low:+.1f}, {100 * high:+.1f}]"


def short_count(count: float) -> str:
    """A number of evaluations in five characters or so."""
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k" if count >= 1e4 else f"{count:.0f}"


def draws_text(draws: int | None) -> str:
    """How many draws all rows have, N where they differ."""
    return "N" if draws is None else str(draws)


def attack_of(result: Result) -> str:
    """An attack's name and its effort; "none" of clean images."""
    if result.attack == "none":
        return "none"
    return f"{result.attack} ({', '.join((length(result), f'EOT {result.eot}', *ways(result)))})"


def length(result: Result) -> str:
    """Of an attack: how many iterations or queries."""
    return f"{result.iterations} {result.unit}"


def ways(result: Result) -> list[str]:
    """How an attack differs from one that differentiates the deployed model and wants any wrong class."""
    fixed = ["fixed noise"] if result.randomness == "fixed" else []
    return fixed + _through(result.through, result.surrogate) + _target(result.target)


def ways_of_pair(paired: Paired) -> list[str]:
    """`ways`, as far as a comparison says."""
    return _through(paired.through, None) + _target(paired.target)


def _through(through: str, surrogate: Mapping[str, Any] | None) -> list[str]:
    if through == "surrogate":
        return ["surrogate " + " ".join(f"{key}={value}" for key, value in (surrogate or {}).items())]
    return ["transfer"] if through == "classifier" else []


def _target(target: int | str | None) -> list[str]:
    return [] if target is None else [f"target {target}"]


def reduction_lines(budget: Budget) -> list[str]:
    """What a time limit changed, in words, a line each."""
    if not budget.reduced:
        return [f"budget of {duration(budget.seconds)}: the whole run fits, about {duration(budget.estimated_seconds)}"]
    lines = [f"budget of {duration(budget.seconds)}: reduced to about {duration(budget.estimated_seconds)}"]
    lines += [f"  {key}: {asked} -> {given}" for key, (asked, given) in budget.reduced.items()]
    weaker = any(key.startswith("attacks.") for key in budget.reduced)
    return lines + (["  fewer iterations are a weaker attack: robust accuracies come out too high"] if weaker else [])
