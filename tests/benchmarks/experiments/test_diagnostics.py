"""Signs of a broken evaluation: on made-up results where it is known which must be found, and by `purify bench
--diagnose` on broken and sound models.
"""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from attacks import L2, PGD, Linf
from benchmarks import cli
from benchmarks.config.attack_kinds import PGDConfig
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import validate
from benchmarks.evaluation.diagnostics import SIGNIFICANCE, Measured, flags, looked_for
from benchmarks.evaluation.evaluate import Evaluation
from benchmarks.evaluation.signs import SIGNS
from benchmarks.experiments import probes as probes_module
from benchmarks.experiments.probes import RandomNoise, measured, probes
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


def test_noise_is_a_random_point_of_the_ball():
    x, y = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(3, dtype=torch.int64)
    keys = torch.tensor([5, 6, 7])
    for threat in (Linf(0.1), L2(0.5)):
        noisy = RandomNoise(threat)(None, x, y, keys)
        assert (threat.distance(noisy, x) <= threat.epsilon * (1 + 1e-5)).all() and (
            threat.distance(noisy, x) > 0
        ).all()
        assert noisy.min() >= 0 and noisy.max() <= 1
        assert torch.equal(RandomNoise(threat)(None, x[1:2], y[1:2], keys[1:2]), noisy[1:2])


LINF = {"norm": "Linf", "epsilon": 0.1}
BASE = {
    "data": {"name": "fashion-mnist-embedded", "images": 2},
    "classifier": "fashion-mnist",
    "score": "fashion-mnist",
    "purifier": {"t_star": 0.1, "steps": 1},
}
SHORT = (
    {"kind": "apgd"},
    {"kind": "deviated"},
    {"kind": "hammer", "gradients": "grafted"},
    {"kind": "strongest", "budget": 500},
    {"kind": "eot_autoattack"},
    {"kind": "autoattack", "version": "rand"},
    {"kind": "autoattack"},
)
"""Attacks whose probes must be settings that their classes accept."""


def test_the_rows_of_a_diagnosis():
    config = PGDConfig(kind="pgd", threat={"norm": "Linf", "epsilon": 0.1}, steps=10, eot=4, step_size=0.02)
    x = torch.zeros(2, 1, 4, 4)
    found = {probe.label: probe for probe in probes(config, "defended", x)}
    assert set(found) == {
        f"pgd+{what}" for what in ("noise", "single-step", "queries", "large-epsilon", "transfer", "eot-doubled")
    }
    large, single, doubled = found["pgd+large-epsilon"], found["pgd+single-step"], found["pgd+eot-doubled"]
    assert (large.threat.epsilon, large.step_size, large.steps, large.eot) == (0.5, pytest.approx(0.1), 10, 4)
    assert single.build(True) == PGD(Linf(0.1), 1, 4, 0.1, random_start=False)
    assert (doubled.eot, doubled.steps) == (8, 10) and found["pgd+transfer"].through == "classifier"
    for listed in SHORT:
        attack = validate(BenchConfig, BASE | {"attacks": [{"threat": LINF} | listed]}).attacks[0]
        for probe in probes(attack, "defended", x):
            validate(
                BenchConfig,
                (
                    BASE | {"attacks": [probe.model_dump(exclude={"name"})]}
                    if probe.kind != "noise"
                    else BASE | {"attacks": []}
                ),
            )
            probe.build(True)
    assert {probe.label for probe in probes(config, "undefended", x)} == {
        "pgd+noise",
        "pgd+single-step",
        "pgd+queries",
        "pgd+large-epsilon",
    }


@pytest.mark.parametrize("attack", [{"kind": "perceptual"}, {"kind": "low_frequency"}])
def test_an_attack_beyond_norm_balls_has_no_rows_of_its_own(attack):
    (made,) = validate(
        BenchConfig, BASE | {"attacks": [attack | {"threat": {"features": "fashion-mnist", "epsilon": 0.5}}]}
    ).attacks
    assert probes(made, "defended", torch.zeros(2, 1, 4, 4)) == []


@pytest.mark.parametrize(
    ("small", "large", "same"),
    [
        ({"kind": "stadv", "bound": 0.05}, {"kind": "stadv", "bound": 0.1}, True),
        ({"kind": "recolor", "bound": 0.06}, {"kind": "recolor", "bound": 0.1}, True),
        ({"kind": "stadv", "bound": 0.05}, {"kind": "stadv", "bound": 0.1, "iterations": 5}, False),
        (
            {"kind": "perceptual", "threat": ("fashion-mnist", 0.1)},
            {"kind": "perceptual", "threat": ("fashion-mnist", 0.2)},
            True,
        ),
        (
            {"kind": "perceptual", "threat": ("fashion-mnist", 0.1)},
            {"kind": "perceptual", "threat": ("{folder}", 0.2)},
            False,
        ),
    ],
)
def test_a_larger_bound_is_compared_with_a_smaller_one_of_its_kind(small, large, same, tmp_path):
    """The larger bound leaves 24 of 40 images, the smaller one 12: a sign where both attacks and what they measure by
    are the same.
    """
    (tmp_path / "features.py").write_text("import torch\n\n\ndef network():\n    return torch.nn.Flatten().eval()\n")
    rows = [CLEAN]
    for name, attack, right in (("small", small, 12), ("large", large, 24)):
        if "threat" in attack:
            features, epsilon = attack["threat"]
            attack = attack | {
                "threat": {
                    "features": features.format(folder=f"module:{tmp_path}/features.py:network"),
                    "epsilon": epsilon,
                }
            }
        (made,) = validate(BenchConfig, BASE | {"attacks": [attack | {"name": name}]}).attacks
        rows.append(measured("defended", made, made.build(True).threat, evaluation(right)))
    found = [(flag.sign, flag.attack, flag.compared_with) for flag in flags(rows)]
    assert found == ([("accuracy rises with epsilon", "large", "small")] if same else [])


# the whole way

MODELS = """
import torch
from torch import nn
from benchmarks import load_classifier

class Masked(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.inner, self.how = load_classifier("fashion-mnist"), how

    def forward(self, x):
        if self.how == "detach":
            return self.inner(x.detach()) + 0 * x.sum()
        return self.inner((8 * x).round() / 8)

def detached():
    return Masked("detach").eval()

def quantised():
    return Masked("quantise").eval()
"""


def diagnose(tmp_path, monkeypatch, classifier):
    (tmp_path / "masked.py").write_text(MODELS)
    config = {
        "data": {"name": "fashion-mnist-embedded", "images": 16},
        "classifier": classifier.format(folder=tmp_path),
        "score": "fashion-mnist",
        "purifier": {"t_star": 0.05, "steps": 1, "solver": "ddim"},
        "draws": 2,
        "pictures": 0,
        "attacks": [{"kind": "pgd", "threat": {"norm": "Linf", "epsilon": 0.1}, "steps": 10, "models": ["undefended"]}],
    }
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(probes_module, "_QUERIES", 120)
    monkeypatch.setattr(
        "sys.argv",
        [
            "purify",
            "bench",
            str(tmp_path / "bench.yaml"),
            "--out",
            str(tmp_path / "out"),
            "--diagnose",
            "--device",
            "cpu",
        ],
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    return json.loads((tmp_path / "out" / "summary.json").read_text())


@pytest.mark.filterwarnings("ignore:the attack's gradient was exactly zero")
@pytest.mark.parametrize("model", ["detached", "quantised"])
def test_a_masked_gradient_is_flagged(model, tmp_path, monkeypatch, capsys):
    summary = diagnose(tmp_path, monkeypatch, "module:{folder}/masked.py:" + model)
    assert [flag["sign"] for flag in summary["flags"]] == [
        "gradients exactly zero",
        "noise as good as the attack",
        "queries beat gradients",
    ]
    printed = capsys.readouterr().out
    assert all(f"FLAG  undefended, pgd: {flag['sign']}" in printed for flag in summary["flags"])


def test_an_honest_model_is_not_flagged(tmp_path, monkeypatch, capsys):
    summary = diagnose(tmp_path, monkeypatch, "fashion-mnist")
    assert summary["flags"] == []
    assert [r["attack"] for r in summary["diagnostics"]] == [
        "pgd+noise",
        "pgd+single-step",
        "pgd+queries",
        "pgd+large-epsilon",
    ]
    assert all(r["images"] == 16 for r in summary["diagnostics"])
    assert [r["attack"] for r in summary["results"]] == ["none", "pgd", "none"]
    gradients, probed = (
        "gradients exactly zero, gradients NaN or infinite",
        "noise as good as the attack, single step beats iterations, queries beat gradients",
    )
    lines = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(
        "sys.argv",
        [
            "purify",
            "bench",
            str(tmp_path / "bench.yaml"),
            "--out",
            str(tmp_path / "out"),
            "--resume",
            "--device",
            "cpu",
        ],
    )
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["diagnostics"] == summary["diagnostics"]
    rest = "accuracy rises with epsilon, robust at a large epsilon, images lost without any attack"
    assert f"diagnosis, looked for and not found: {gradients}, {probed}, {rest}" in lines
    assert "diagnosis, no rows to see it in: transfer beats white box, EOT not converged" in lines
