"""What a diagnosis measures beside a run, and `purify bench --diagnose` on broken and sound models."""

import json

import pytest
import torch
import yaml

from attacks import L2, PGD, Linf
from benchmarks import cli
from benchmarks.config.attack_kinds import PGDConfig
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import validate
from benchmarks.evaluation.diagnostics import flags
from benchmarks.evaluation.evaluate import Evaluation
from benchmarks.experiments import probes as probes_module
from benchmarks.experiments.probes import RandomNoise, measured, probes


def evaluation(right):
    """Of 40 images in 4 draws, the first `right` of them right in every draw."""
    wrong = (torch.arange(40) >= right).long()
    labels = torch.zeros(40, dtype=torch.int64)
    return Evaluation(wrong[:, None].repeat(1, 4), labels, torch.zeros(40, 1, 2, 2), 1.0, 0)


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
    rows = [measured("defended", None, None, evaluation(36))]
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
        rows.append(
            measured(
                "defended",
                made,
                made.build(True).threat,
                evaluation(right),
            )
        )
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
