"""Attacks in configurations: what they build, what they refuse, and that new options do not make old runs strangers."""

import inspect
import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
import yaml

import attacks
from benchmarks import config
from benchmarks.config.attack import AttackConfig
from benchmarks.config.attack_kinds import SECTIONS, AutoAttackConfig, NormConfig, PGDConfig, StrongestConfig
from benchmarks.config.bench import BenchConfig
from benchmarks.config.perceptual_kinds import PerceptualConfig
from benchmarks.config.sections import ConfigError
from benchmarks.evaluation.beginnings import check_begins
from benchmarks.experiments.bench import Bench

KINDS = tuple(SECTIONS.values())
BASE = {
    "data": {"name": "fashion-mnist-embedded", "images": 3},
    "classifier": "fashion-mnist",
    "score": "fashion-mnist",
    "purifier": {"t_star": 0.1, "steps": 2},
    "draws": 2,
}
LINF = {"norm": "Linf", "epsilon": 0.1}
FEATURES = {"features": "fashion-mnist", "epsilon": 0.5}
OWN = {"stadv": "StAdv 0.05", "recolor": "ReColorAdv 0.06"}
NEEDED = {"strongest": {"budget": 500}}


def settings(*listed):
    return config.validate(BenchConfig, BASE | {"attacks": [{"threat": LINF} | attack for attack in listed]})


def kind_of(section):
    return get_args(section.model_fields["kind"].annotation)[0]


@pytest.mark.parametrize("section", KINDS, ids=kind_of)
def test_every_kind_builds_what_its_class_takes(section):
    """The sections repeat the names and defaults of the classes: neither may drift."""
    kind = kind_of(section)
    threats = [
        (NormConfig, {"threat": LINF}, "Linf 0.1"),
        (PerceptualConfig, {"threat": FEATURES}, "feature distance (fashion-mnist) 0.5"),
    ]
    given, called = next(
        ((given, called) for base, given, called in threats if issubclass(section, base)), ({}, OWN.get(kind))
    )
    (attack_config,) = config.validate(
        BenchConfig, BASE | {"attacks": [{"kind": kind, **given, **NEEDED.get(kind, {})}]}
    ).attacks
    built = attack_config.build(defended=True)
    assert type(built) is section.makes and str(built.threat) == called
    parameters = inspect.signature(section.makes).parameters
    for option, field in section.model_fields.items():
        if option in AttackConfig.model_fields:
            continue
        default = parameters[option].default
        required = default is inspect.Parameter.empty
        assert required == field.is_required(), option
        assert required or field.default == default, option


def test_settings_arrive():
    options = {
        "steps": 7,
        "eot": 3,
        "momentum": 0.5,
        "schedule": "cosine",
        "stop_draws": 4,
        "loss": "dlr",
        "step_size": "2/255",
    }
    (pgd,) = settings({"kind": "pgd", **options}).attacks
    built = pgd.build(defended=True)
    assert built == attacks.PGD(attacks.Linf(0.1), 7, 3, 2 / 255, "dlr", momentum=0.5, schedule="cosine", stop_draws=4)
    assert pgd.build(defended=False).eot == 1
    facts = pgd.facts(defended=True)
    assert (facts["iterations"], facts["eot"], facts["loss"], facts["settings"]["momentum"]) == (7, 3, "dlr", 0.5)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({"kind": "pgd", "momentum": 1}, "attacks.0.pgd.momentum: must lie in [0, 1), got 1"),
        (
            {"kind": "pgd", "schedule": "square"},
            "attacks.0.pgd.schedule: Input should be 'constant', 'linear' or 'cosine', got 'square'",
        ),
        ({"kind": "apgd", "iteration": 5}, "unknown key 'attacks.0.apgd.iteration'; did you mean 'iterations'?"),
        (
            {"kind": "square", "answers": "votes"},
            "attacks.0.square.answers: Input should be 'logits' or 'labels', got 'votes'",
        ),
        (
            {"kind": "pgd", "target": "next"},
            "attacks.0.pgd.target: expected least_likely, random or a class from 0, got 'next'",
        ),
        (
            {"kind": "pgd", "target": -1},
            "attacks.0.pgd.target: expected least_likely, random or a class from 0, got -1",
        ),
        (
            {"kind": "pgd", "through": "bare"},
            "attacks.0.pgd.through: Input should be 'deployed', 'classifier' or 'surrogate', got 'bare'",
        ),
        (
            {"kind": "pgd", "through": "surrogate"},
            "attacks.0.pgd.surrogate: `through: surrogate` needs the purifier keys that differ",
        ),
        (
            {"kind": "pgd", "surrogate": {"steps": 5}},
            "attacks.0.pgd.surrogate: goes with `through: surrogate` and only with it",
        ),
        (
            {"kind": "pgd", "through": "classifier", "gradient": "bpda"},
            "attacks.0.pgd.through: the bare classifier has no purifier for `gradient`",
        ),
        (
            {"kind": "deviated", "through": "classifier"},
            "attacks.0.deviated.through: this attack looks inside a purifier",
        ),
        (
            {"kind": "deviated", "randomness": "fixed"},
            "attacks.0.deviated.through: randomness: fixed hides the purifier's states",
        ),
        ({"kind": "strongest"}, "missing key 'attacks.0.strongest.budget'"),
    ],
)
def test_mistakes_are_named(attack, message):
    with pytest.raises(ConfigError) as raised:
        settings(attack)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({"kind": "autoattack", "target": 3}, "attack 'autoattack': autoattack has no targeted form"),
        ({"kind": "autoattack", "version": "custom"}, "attack 'autoattack': attacks go with"),
        (
            {"kind": "square", "queries": 31, "eot": 8},
            "attack 'square': queries must be at least 32 with eot=8 and restarts=1 on this model, got 31",
        ),
        ({"kind": "eot_autoattack", "queries": 79}, "attack 'eot_autoattack': queries must be at least 80 with eot=20"),
        ({"kind": "strongest", "budget": 20}, "attack 'strongest': budget=20 evaluations an image is less than"),
        ({"kind": "pgd", "target": 99}, r"attack 'pgd': target=99: the model has the classes 0 \.\. 9"),
        (
            {"kind": "deviated", "gradient": "bpda"},
            "attack 'deviated': the purifier does not show its states with this `gradient`; set gradient: exact",
        ),
        ({"kind": "deviated", "gradient": "adjoint"}, "attack 'deviated': the purifier does not show its states"),
        (
            {"kind": "pgd", "through": "surrogate", "surrogate": {"step": 5}},
            "attack 'pgd', surrogate: unknown key 'purifier.step'; did you mean 'steps'?",
        ),
        (
            {"kind": "pgd", "through": "surrogate", "surrogate": {"steps": "few"}},
            "attack 'pgd', surrogate: purifier.steps: Input should be a valid integer",
        ),
        (
            {"kind": "pgd", "through": "surrogate", "surrogate": {"t_star": 2}},
            r"attack 'pgd', surrogate: t_star must lie in \(0, 1\], got 2",
        ),
    ],
)
def test_what_only_the_parts_can_tell_comes_before_any_work(attack, message):
    with pytest.raises(ValueError, match=message):
        Bench(settings(attack), torch.device("cpu"))


def test_what_is_attacked():
    """`through` and `gradient` choose the attacked model; the deployed one judges; on the bare classifier such rows
    make no sense.
    """
    bench = Bench(
        settings(
            {"kind": "pgd"},
            {"kind": "pgd", "name": "transfer", "through": "classifier", "eot": 4},
            {
                "kind": "pgd",
                "name": "short",
                "through": "surrogate",
                "surrogate": {"steps": 1, "t_star": 0.05},
                "eot": 4,
            },
            {"kind": "pgd", "name": "bpda", "gradient": "bpda"},
            {"kind": "deviated"},
            {"kind": "hammer", "gradients": "grafted"},
        ),
        torch.device("cpu"),
    )
    rows = {(row.model_name, row.attack_name): row for row in bench.rows}
    assert [name for model, name in rows if model == "undefended"] == ["none", "pgd"]
    defended = rows["defended", "none"].model
    assert all(row.model is defended for (model, _), row in rows.items() if model == "defended")
    transfer, short = rows["defended", "transfer"], rows["defended", "short"]
    assert transfer.attack_model is bench.setup.classifier and transfer.attack.eot == 1
    assert (short.attack_model.purifier.steps, short.attack_model.purifier.t_star, short.attack.eot) == (1, 0.05, 4)
    assert defended.purifier.steps == 2 and rows["defended", "bpda"].attack_model.purifier.gradient == "bpda"
    assert short.attack_model.classifier is bench.setup.classifier


def test_new_options_at_their_defaults_leave_a_run_its_identity():
    """What batches of old were made under, as it was recorded before attacks had `through`, `target`, `momentum` and
    the rest.
    """
    listed = [
        {"kind": "pgd", "steps": 10, "eot": 4, "models": ["defended"], "gradient": "bpda"},
        {"kind": "autoattack", "version": "rand", "randomness": "fresh"},
    ]
    recorded = (
        '{"data": {"name": "fashion-mnist-embedded", "images": 3}, "classifier": {"name": "fashion-mnist"}, "score":'
        ' {"name": "fashion-mnist"}, "purifier": {"steps": 2}, "draws": 2, "attacks": [{"kind": "pgd", "threat":'
        ' {"norm": "Linf", "epsilon": 0.1}, "gradient": "bpda", "models": ["defended"], "steps": 10, "eot": 4},'
        ' {"kind": "autoattack", "threat": {"norm": "Linf", "epsilon": 0.1}, "version": "rand"}]}'
    )
    made = settings(*listed)
    assert json.dumps(made.model_dump(mode="json", exclude={"audit", "pictures"}, exclude_defaults=True)) == recorded
    assert yaml.safe_load(recorded)["attacks"][0]["kind"] == "pgd"


def test_dumped_configurations_read_back(tmp_path):
    made = settings(
        {"kind": "pgd", "through": "surrogate", "surrogate": {"steps": 1}, "target": "random"},
        {"kind": "apgd", "target": 3},
        {"kind": "deviated"},
    )
    config.dump(made, tmp_path / "config.yaml")
    assert config.load(BenchConfig, str(tmp_path / "config.yaml")) == made


def test_shorter_versions_for_probes():
    pgd = PGDConfig(kind="pgd", threat=LINF, steps=20, eot=4, restarts=2)
    assert (pgd.reduced(0.5).steps, pgd.reduced(0.01).steps, pgd.reduced(0.5).eot) == (10, 1, 4)
    assert pgd.evaluations(defended=True) == attacks.Cost(160, 160)
    assert pgd.evaluations(defended=False) == attacks.Cost(40, 40)
    rand = AutoAttackConfig(kind="autoattack", threat=LINF, version="rand").reduced(0.02)
    assert (rand.version, rand.attacks, rand.iterations, rand.eot) == ("custom", ("apgd-ce", "apgd-dlr"), 2, 20)
    assert rand.build(True).iterations == 2


def test_an_adaptive_ensemble_is_not_cut_below_what_it_can_begin_with():
    """FAB alone needs far more than gradient steps do: whatever the share, the least budget is the one that is not
    refused.
    """
    made = StrongestConfig(kind="strongest", threat=LINF, budget=3000, sequence=("fab-t",))
    least = made.reduced(0.001).budget
    with pytest.raises(ValueError, match=f"budget={least - 1} evaluations an image is less than {least}, "):
        check_begins(replace(made.build(True), budget=least - 1), random=True)
    assert made.reduced(0.5).budget == 1500 and made.model_copy(update={"budget": 10}).reduced(0.5).budget == 10
