"""`purify rivals`: the same models, images, budget and draws for all; other packages behind adapters."""

import json
import sys
import types
from importlib.metadata import version

import pytest
import torch
import yaml
from torch import nn

from attacks import L2, PGD, Linf, count_cost
from benchmarks import cli
from benchmarks.evaluation.statistics import PairedDifference
from benchmarks.experiments import rivals
from benchmarks.experiments.rivals import Foolbox, Torchattacks, verdict

PERCEPTUAL = {"kind": "perceptual", "threat": {"features": "fashion-mnist", "epsilon": 0.5}}
CONFIG = {
    "data": {"name": "fashion-mnist-embedded", "images": 64},
    "classifier": "fashion-mnist",
    "score": "fashion-mnist",
    "purifier": {"t_star": 0.05, "steps": 1},
    "draws": 2,
    "attacks": [{"kind": "stadv"}, PERCEPTUAL, {"kind": "pgd", "threat": {"norm": "Linf", "epsilon": 0.1}}],
}


def test_the_contest(tmp_path, monkeypatch, capsys):
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(CONFIG))
    options = [
        "--images",
        "3",
        "--iterations",
        "3",
        "--eot",
        "2",
        "--queries",
        "80",
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    monkeypatch.setattr("sys.argv", ["purify", "rivals", str(tmp_path / "bench.yaml"), *options])
    monkeypatch.setattr(rivals, "PARTS", ("apgd-ce", "square"))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    result = json.loads((tmp_path / "out" / "rivals.json").read_text())
    assert (result["images"], result["threat"], result["iterations"], result["eot"], result["draws"]) == (
        3,
        "Linf 0.1",
        3,
        2,
        2,
    )
    official = f"pyautoattack {version('pyautoattack')}"
    expected = [
        ("PGD", "ours"),
        ("APGD-CE", "ours"),
        ("EOT-AutoAttack", "ours"),
        ("APGD-CE", official),
        ("AutoAttack", official),
    ]
    for model in ("undefended", "defended"):
        assert [(r["attack"], r["package"]) for r in result["results"] if r["model"] == model] == expected
    rows = {(r["model"], r["attack"], r["package"]): r for r in result["results"]}
    assert rows["undefended", "PGD", "ours"]["attack_cost"] == {"forward": 9, "backward": 9}
    assert rows["defended", "PGD", "ours"]["attack_cost"] == {"forward": 18, "backward": 18}
    assert rows["defended", "AutoAttack", official]["own_verdict"] is not None
    pairs = {(p["model"], p["ours"], p["theirs"]): p for p in result["paired"]}
    against = [("PGD", "APGD-CE"), ("APGD-CE", "APGD-CE"), ("EOT-AutoAttack", "AutoAttack")]
    assert set(pairs) == {
        (model, ours, f"{theirs} of {official}") for model in ("undefended", "defended") for ours, theirs in against
    }
    for (model, ours, theirs), pair in pairs.items():
        name, package = theirs.split(" of ")
        assert pair["value"] == pytest.approx(
            rows[model, ours, "ours"]["single"]["value"] - rows[model, name, package]["single"]["value"]
        )
    assert "ours minus theirs" in capsys.readouterr().out


def test_verdicts():
    """Of the accuracy that ours leaves minus theirs: only an interval without 0 decides."""
    intervals = {(-0.2, -0.01): "stronger", (-0.1, 0.1): "as strong", (0.0, 0.1): "as strong", (0.01, 0.2): "weaker"}
    assert all(verdict(PairedDifference(sum(ci) / 2, ci, 0.5)) == word for ci, word in intervals.items())


def test_a_configuration_without_a_norm_ball(tmp_path, monkeypatch, capsys):
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(CONFIG | {"attacks": [{"kind": "stadv"}, PERCEPTUAL]}))
    monkeypatch.setattr("sys.argv", ["purify", "rivals", str(tmp_path / "bench.yaml"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2 and "no attack within a norm ball" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Drawn(nn.Module):
    """Two classes by the sum of the pixels against the label; remembers the keys that it was called with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, keys=None):
        self.seen.append(keys)
        z = (x - 0.5).sum((1, 2, 3))
        return torch.stack([z, -z], 1)


X = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
Y = ((X - 0.5).sum((1, 2, 3)) < 0).long()


def stand_in_torchattacks(calls):
    """What the adapter uses of the package, by its documented signature: EOTPGD(model, eps, alpha, steps, eot_iter) and
    PGDL2(model, eps, alpha, steps).
    """

    def attack(name):
        def make(model, eps, alpha, steps, eot_iter=1):
            calls.append((name, eps, alpha, steps, eot_iter))

            def run(images, labels):
                x = images + torch.empty_like(images).uniform_(-eps, eps)
                for _ in range(steps):
                    x = x.detach().requires_grad_()
                    loss = sum(nn.functional.cross_entropy(model(x), labels) for _ in range(eot_iter))
                    x = images + (x + alpha * torch.autograd.grad(loss, x)[0].sign() - images).clamp(-eps, eps)
                return x  # may leave [0, 1]: the adapter brings it back

            return run

        return make

    return types.SimpleNamespace(EOTPGD=attack("EOTPGD"), PGDL2=attack("PGDL2"))


def test_torchattacks_adapter(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "torchattacks", stand_in_torchattacks(calls))
    threat, model, keys = Linf(0.3), Drawn(), torch.arange(4)
    with count_cost() as cost:
        x_adv = Torchattacks(threat, 5, 3)(model, X, Y, keys)
    assert calls == [("EOTPGD", 0.3, pytest.approx(2.5 * 0.3 / 5), 5, 3)]
    assert (cost.forward, cost.backward) == (4 * 5 * 3, 4 * 5 * 3)
    assert (threat.distance(x_adv, X) <= 0.3 + 1e-6).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    assert torch.equal(x_adv, PGD(threat, 5)(model, X, Y, keys))  # a linear model has one optimum
    used = torch.cat(model.seen[:15])
    assert len(used.unique()) == len(used)  # every call draws anew
    state = torch.get_rng_state()
    assert torch.equal(Torchattacks(threat, 5, 3)(Drawn(), X, Y, keys), x_adv) and torch.equal(
        torch.get_rng_state(), state
    )
    Torchattacks(L2(0.5), 5, 3)(model, X, Y, keys)
    assert calls[-1][0] == "PGDL2"


def test_foolbox_adapter(monkeypatch):
    """The documented interface: attack(model, images, labels, epsilons=...) -> raw, clipped, success."""
    made = {}

    def wrapper(model, n_steps):
        made["n_steps"] = n_steps
        return lambda x: sum(model(x) for _ in range(n_steps)) / n_steps

    def attack(name):
        def make(steps, abs_stepsize):
            made.update(name=name, steps=steps, step=abs_stepsize)
            return lambda model, x, y, epsilons: (
                None,
                x + epsilons * torch.sign(0.5 - Y.float())[:, None, None, None] * (-1 + 0 * model(x)[0, 0]),
                None,
            )

        return make

    foolbox = types.SimpleNamespace(
        PyTorchModel=lambda model, bounds, device: model if bounds == (0, 1) else None,
        models=types.SimpleNamespace(ExpectationOverTransformationWrapper=wrapper),
        attacks=types.SimpleNamespace(LinfPGD=attack("LinfPGD"), L2PGD=attack("L2PGD")),
    )
    monkeypatch.setitem(sys.modules, "foolbox", foolbox)
    model = Drawn()
    x_adv = Foolbox(Linf(0.1), 4, 2)(model, X, Y, torch.arange(4))
    assert (
        made == {"n_steps": 2, "name": "LinfPGD", "steps": 4, "step": pytest.approx(2.5 * 0.1 / 4)}
        and len(model.seen) == 2
    )
    torch.testing.assert_close(x_adv, PGD(Linf(0.1), 4)(model, X, Y))
    Foolbox(L2(0.5), 4, 1)(model, X, Y)
    assert made["name"] == "L2PGD" and len(model.seen) == 2 + 4 + 1


def test_packages_take_part_where_they_are_installed(monkeypatch):
    from benchmarks.config.bench import BenchConfig
    from benchmarks.config.sections import validate
    from benchmarks.experiments.rivals import Rivals

    known = version
    monkeypatch.setattr(
        rivals, "version", lambda package: {"torchattacks": "3.5.1", "foolbox": "3.3.4"}.get(package) or known(package)
    )
    contest = Rivals(validate(BenchConfig, CONFIG), torch.device("cpu"))
    names = [contestant.package for contestant in contest.contestants[True] if contestant.name == "PGD"]
    assert names == ["ours", "torchattacks 3.5.1", "foolbox 3.3.4"]
