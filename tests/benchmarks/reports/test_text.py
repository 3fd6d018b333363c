"""Numbers and attacks in words."""

import pytest

from benchmarks.evaluation.statistics import Estimate, PairedDifference
from benchmarks.reports.text import (
    attack_of,
    difference_text,
    percent,
    percent_or_dash,
    reduction_lines,
    short_count,
    stacked,
    ways_of_pair,
)
from benchmarks.runs.schema import Budget, Paired, Result

HALF = Estimate(0.5, (0.25, 0.755))


def row(**changes):
    facts = {"model": "defended", "attack": "pgd", "threat": "Linf 0.1", "single": HALF, "worst_of": {2: HALF}}
    effort = {"seconds": 1.0, "network_evaluations": 8, "iterations": 20, "eot": 4, "seeds": {"evaluation": 0}}
    return Result.model_validate(facts | effort | changes)


def test_accuracies():
    assert percent(HALF) == "50.0 [25.0, 75.5]" and stacked(HALF) == "50.0\n25.0-75.5"
    assert percent_or_dash(None) == stacked(None) == difference_text(None) == "-"
    assert difference_text(PairedDifference(-0.031, (-0.05, 0.0), 0.1)) == "-3.1 [-5.0, +0.0]"


def test_counts():
    assert [short_count(n) for n in (0, 9999, 10_000, 128_000, 2_540_000)] == ["0", "9999", "10k", "128k", "2.5M"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "pgd (20 steps, EOT 4)"),
        ({"attack": "none"}, "none"),
        ({"attack": "square", "unit": "queries"}, "square (20 queries, EOT 4)"),
        ({"randomness": "fixed"}, "pgd (20 steps, EOT 4, fixed noise)"),
        ({"through": "classifier", "target": 5}, "pgd (20 steps, EOT 4, transfer, target 5)"),
        ({"through": "surrogate", "surrogate": {"steps": 1}}, "pgd (20 steps, EOT 4, surrogate steps=1)"),
    ],
)
def test_attacks(changes, text):
    assert attack_of(row(**changes)) == text


def test_attacks_of_comparisons():
    pair = {"model": "defended", "attack": "a", "reference": "b", "value": 0.0, "ci95": (0.0, 0.0), "p_value": 1.0}
    assert ways_of_pair(Paired.model_validate(pair)) == []
    assert ways_of_pair(Paired.model_validate(pair | {"through": "classifier", "target": 0})) == [
        "transfer",
        "target 0",
    ]


def test_what_a_time_limit_took():
    whole = Budget(seconds=7200, estimated_seconds=90, reduced={})
    assert reduction_lines(whole) == ["budget of 2.0 h: the whole run fits, about 90 s"]
    changes = {"data.images": (64, 16), "attacks.pgd.steps": (20, 9)}
    reduced = Budget(seconds=600, estimated_seconds=500, reduced=changes)
    assert reduction_lines(reduced) == [
        "budget of 10 min: reduced to about 8 min",
        "  data.images: 64 -> 16",
        "  attacks.pgd.steps: 20 -> 9",
        "  fewer iterations are a weaker attack: robust accuracies come out too high",
    ]
