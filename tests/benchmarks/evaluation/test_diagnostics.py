"""Signs of a broken evaluation, on made-up results where it is known which must be found."""

import json
from dataclasses import replace

import pytest
import torch

from attacks import L2, Linf
from benchmarks.evaluation.diagnostics import SIGNIFICANCE, Measured, flags, looked_for
from benchmarks.evaluation.evaluate import Evaluation
from benchmarks.evaluation.signs import SIGNS
from benchmarks.reports.terminal import diagnosis_lines
from benchmarks.runs.schema import Summary

IMAGES, DRAWS = 40, 4
RUN = {"schema": 1, "seed": 0, "images": IMAGES, "draws": DRAWS, "complete": True, "results": ()}


def evaluation(right, warnings=(), shape=(1, 2, 2)):
    """Of `IMAGES` images, the first `right` of them right in every draw."""
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    wrong = (torch.arange(IMAGES) >= right).long()
    return Evaluation(wrong[:, None].repeat(1, DRAWS), labels, torch.zeros(IMAGES, *shape), 1.0, 0, warnings)


def row(attack, right, access="white box", threat=None, model="defended", warnings=(), **settings):
    threat = Linf(0.1) if threat is None else threat
    settings = {"kind": "pgd", "iterations": 20, "eot": 4} | settings
    return Measured(
        model,
        attack,
        evaluation(right, warnings),
        access,
        None if access == "none" else threat,
        {} if access == "none" else settings,
    )


CLEAN, ATTACK = row("none", 36, "none"), row("pgd", 12)
SOUND = [
    CLEAN,
    row("none", 38, "none", model="undefended"),
    ATTACK,
    row("noise", 35, "noise", iterations=0, eot=0),
    row("fgsm", 20, iterations=1),
    row("queries", 25, "query", iterations=100),
    row("transfer", 30, "transfer"),
    row("large", 0, threat=Linf(0.5)),
    row("pgd-eot-8", 12, eot=8),
]


def test_a_sound_evaluation_has_no_flag():
    assert flags(SOUND) == []


@pytest.mark.parametrize(
    ("sign", "doubted", "by", "bad"),
    [
        ("noise as good as the attack", "pgd", "noise2", row("noise2", 12, "noise")),
        ("noise as good as the attack", "pgd", "noise2", row("noise2", 4, "noise")),
        ("single step beats iterations", "pgd", "fgsm2", row("fgsm2", 2, iterations=1)),
        ("queries beat gradients", "pgd", "square", row("square", 2, "query", iterations=100)),
        ("transfer beats white box", "pgd", "bare", row("bare", 2, "transfer")),
        ("accuracy rises with epsilon", "wider", "pgd", row("wider", 24, threat=Linf(0.2))),
        ("robust at a large epsilon", "grey", None, row("grey", 8, threat=Linf(0.5), kind="apgd")),
        ("robust at a large epsilon", "grey", None, row("grey", 8, threat=L2(1.0), kind="apgd")),
        ("EOT not converged", "pgd-eot-8", "pgd-eot-16", row("pgd-eot-16", 2, eot=16)),
        (
            "gradients exactly zero",
            "dead",
            None,
            row("dead", 12, warnings=(f"the attack's gradient was exactly zero for 3 of {IMAGES} images, in up to 2",)),
        ),
        (
            "gradients NaN or infinite",
            "dead",
            None,
            row("dead", 12, warnings=(f"the attack's gradient was NaN or infinite for 9 of {IMAGES} images, in",)),
        ),
        ("no clean row", "none", None, row("pgd", 3, model="other")),
    ],
)
def test_each_sign_is_found_and_nothing_else(sign, doubted, by, bad):
    (found,) = flags([*SOUND, bad])
    assert (found.sign, found.attack, found.compared_with) == (sign, doubted, by)
    assert found.seen and found.advice
    assert json.loads(json.dumps(found.as_dict()))["sign"] == sign
    if by is not None and "noise" not in sign:
        assert found.difference.p_value < SIGNIFICANCE and found.difference.value > 0


@pytest.mark.parametrize(
    "harmless",
    [
        row("fgsm2", 11, iterations=1),  # one image of 40 is luck
        row("square", 11, "query", iterations=100),
        row("bare", 10, "transfer"),
        row("wider", 13, threat=Linf(0.2)),
        row("apgd", 12, threat=Linf(0.2), kind="apgd"),  # another attack: nothing says that it must do better
        row("grey", 1, threat=Linf(0.5), kind="apgd"),
        row("l2", 30, threat=L2(0.5)),
        row("weak-eot", 25, eot=1),  # what more draws gain was gained: 4 and 8 draws agree
        row("square", 2, "query", randomness="fixed"),  # another knowledge of the noise
        row(
            "dead",
            12,
            warnings=(f"the attack's gradient was exactly zero for 1 of {IMAGES} images, in up to 2 of 20 steps",),
        ),
    ],
)
def test_what_is_no_sign(harmless):
    assert flags([*SOUND, harmless]) == []


def test_where_noise_breaks_everything_an_attack_has_nothing_to_add():
    assert flags([*SOUND, row("wide", 2, threat=Linf(0.4)), row("wide+noise", 2, "noise", threat=Linf(0.4))]) == []


def test_rows_on_fewer_images_are_compared_on_those():
    """The attack leaves the first 12 of 40 images; transfer breaks 4 of the first 8, which all stand under the
    attack.
    """
    few = evaluation(4)
    part = Evaluation(few.predictions[:8], few.labels[:8], few.x_adv[:8], 1.0, 0)
    # 4 of 8 prove nothing
    assert flags([*SOUND, Measured("defended", "few", part, "transfer", Linf(0.1), {"iterations": 20})]) == []
    broken = evaluation(0)
    part = Evaluation(broken.predictions[:12], broken.labels[:12], broken.x_adv[:12], 1.0, 0)
    (found,) = flags([*SOUND, Measured("defended", "few", part, "transfer", Linf(0.1), {"iterations": 20})])
    assert found.sign == "transfer beats white box" and found.difference.value == 1.0


def test_a_defence_that_destroys_the_images_is_flagged():
    (found,) = flags([row("none", 38, "none", model="undefended"), row("none", 8, "none")])
    assert (found.sign, found.model, found.attack) == ("images lost without any attack", "defended", "none")
    assert "clean accuracy 20.0" in found.seen and "95.0" in found.seen


def test_what_could_not_be_found_is_not_called_absent():
    """A comparison of 7 images has a p-value of 2 / 2^7 at the least, of 8 one of 2 / 2^8; without rows by queries
    nothing says whether these are better.
    """
    assert looked_for(SOUND) == dict.fromkeys(SIGNS, IMAGES)
    for images, flagged in ((7, []), (8, ["queries beat gradients"])):
        best, worst = (
            replace(e, **{n: getattr(e, n)[:images] for n in ("predictions", "labels", "x_adv")})
            for e in (evaluation(IMAGES), evaluation(0))
        )
        rows = [
            CLEAN,
            Measured("defended", "stands", best, "white box", Linf(0.1), {"iterations": 20}),
            Measured("defended", "square", worst, "query", Linf(0.1), {"iterations": 100}),
        ]
        assert [flag.sign for flag in flags(rows)] == flagged
        seen = looked_for(rows)
        assert seen == {
            "gradients exactly zero": images,
            "gradients NaN or infinite": images,
            "queries beat gradients": images,
        }
        lines = diagnosis_lines(Summary(**RUN, looked_for=seen, flags=tuple(flags(rows))))
        assert ("diagnosis, too few images, 8 are needed: queries beat gradients" in lines) == (images == 7)
        assert lines[0] == "diagnosis, looked for and not found: gradients exactly zero, gradients NaN or infinite"
        assert lines[-1].startswith(
            "diagnosis, no rows to see it in: noise as good as the attack, single step beats iterations, transfer"
        )
    assert looked_for([CLEAN, row("square", 3, "query")]) == {}
