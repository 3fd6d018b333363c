"""`purify compare`: schemes at equal network evaluations."""

import json

import numpy as np
import pytest
import torch
import yaml

from benchmarks import cli
from benchmarks.config.sections import ConfigError
from benchmarks.config.sweep import load_compare, load_sweep
from benchmarks.evaluation.statistics import paired_difference
from benchmarks.experiments.sweep import Sweep
from benchmarks.reports.text import percent
from benchmarks.runs.schema import read_points

TINY = {
    "data": {"name": "fashion-mnist-embedded", "images": 4},
    "classifier": "fashion-mnist",
    "score": "fashion-mnist",
    "purifier": {"t_star": 0.1, "steps": 3},
    "draws": 2,
    "pictures": 0,
    "attacks": [{"kind": "pgd", "threat": {"norm": "Linf", "epsilon": 0.1}, "steps": 1, "models": ["defended"]}],
}
SCHEMES = {"uniform": {}, "quadratic": {"grid": "quadratic"}, "ode": {"grid": "quadratic", "eta": 0}}


def run(monkeypatch, *arguments):
    """The command line's exit code."""
    monkeypatch.setattr("sys.argv", ["purify", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def write(path, schemes, **changes):
    path.write_text(yaml.safe_dump(TINY | changes | {"schemes": schemes}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write(tmp_path_factory.mktemp("config") / "compare.yaml", SCHEMES)


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "compare", config, "--out", out, "--device", "cpu") == 0
    return out


def defended(point):
    return {row["attack"]: row for row in point["results"] if row["model"] == "defended"}


def per_image(folder, attack):
    lines = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    return np.array(
        [
            np.equal(li["predictions"], li["label"]).mean()
            for li in lines
            if (li["model"], li["attack"]) == ("defended", attack)
        ]
    )


def test_the_table_says_what_was_measured(folder):
    """Every cell of compare.md again, from compare.json; every difference, from the images of both runs."""
    result = read_points(folder)
    head, rule, *lines = (folder / "compare.md").read_text().split("\n\n")[0].splitlines()
    assert head.count("|") == rule.count("|") == 11 and "worst of 2" in head and len(lines) == 3
    for point, line in zip(result.measured, lines, strict=True):
        clean, pgd = point.defended
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == [point.name, "3"] and float(cells[2]) == pytest.approx(point.seconds, rel=0.05)
        assert (cells[3], cells[5]) == (percent(clean.single), "pgd, Linf 0.1")
        assert cells[6:9] == [percent(pgd.single), percent(pgd.worst_of[2]), percent(pgd.majority[2])]
        for row, cell in ((clean, cells[4]), (pgd, cells[9])):
            if point.name == "uniform":
                assert row.paired is None and cell == "-"
                continue
            difference = paired_difference(
                per_image(folder / point.folder, row.attack), per_image(folder / "uniform", row.attack)
            )
            assert cell.startswith(f"{100 * difference.value:+.1f} [") and row.paired.ci95 == pytest.approx(
                difference.ci95
            )


def test_schemes_are_the_purifiers_that_were_asked_for(folder):
    configs = {name: yaml.safe_load((folder / name / "config.yaml").read_text())["purifier"] for name in SCHEMES}
    assert {name: (c["grid"], c["eta"] == 0, c["steps"]) for name, c in configs.items()} == {
        "uniform": ("uniform", False, 3),
        "quadratic": ("quadratic", False, 3),
        "ode": ("quadratic", True, 3),
    }
    assert (folder / "pareto.png").stat().st_size > 5000


def test_what_is_resumed_must_be_what_was_begun(folder, config, tmp_path):
    plan, path = load_compare(str(config)), folder / "config.yaml"
    plan.check_same(path)
    with pytest.raises(ConfigError, match="the configuration differs from .* at ode; give the same one"):
        load_compare(str(config), ["schemes.ode.eta=0.5"]).check_same(path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TINY | {"sweep": {"purifier.steps": [3]}}))
    with pytest.raises(ConfigError, match="is not the configuration of a compare: schemes: expected a mapping"):
        plan.check_same(tmp_path / "config.yaml")


def test_unequal_evaluations_are_refused_with_what_each_needs(tmp_path, monkeypatch, capsys):
    """They are counted, not believed: two steps of three evaluations are six."""
    schemes = {"short": {"steps": 2}, "long": {"steps": 6}, "srk": {"steps": 6, "method": "srk"}}
    config, out = write(tmp_path / "c.yaml", schemes, attacks=[]), tmp_path / "out"
    command = ("compare", config, "--out", out, "--device", "cpu")
    assert run(monkeypatch, *command) == 2
    error = capsys.readouterr().err
    assert "do not need the same number of network evaluations" in error and "--unequal" in error
    assert error.rstrip().endswith("\n  short: 2\n  long: 6\n  srk: 6") and not out.exists()
    assert run(monkeypatch, *command, "--unequal") == 0
    printed = capsys.readouterr()
    assert (
        "short" in printed.out
        and "6 NFE" in printed.out
        and f"as a Markdown table: {out / 'compare.md'}" in printed.err
    )
    table = (out / "compare.md").read_text()
    assert all(
        f"\n| {name} | {evaluations} | " in table for name, evaluations in (("short", 2), ("long", 6), ("srk", 6))
    )
    assert table.count("| - | - | - | - | - |\n") == 3


def test_a_configuration_allows_unequal_evaluations(tmp_path, monkeypatch):
    """And the stored one does so still."""
    config, out = (
        write(tmp_path / "c.yaml", {"short": {"steps": 2}, "long": {"steps": 3}}, attacks=[], unequal=True),
        tmp_path / "out",
    )
    assert run(monkeypatch, "compare", config, "--out", out, "--device", "cpu", "--reference", "long") == 0
    assert load_compare(str(out / "config.yaml")).unequal
    result = json.loads((out / "compare.json").read_text())
    assert result["reference"] == "long" and [
        defended(point)["none"]["paired"] is None for point in result["points"]
    ] == [False, True]
    with pytest.raises(ConfigError, match="unequal: expected true or false, got 'yes'"):
        load_compare(str(config), ["unequal='yes'"])


@pytest.mark.parametrize(
    ("load", "name"), [(load_compare, "compare"), (load_compare, "compare_few_steps"), (load_sweep, "sweep")]
)
def test_packaged_points_can_be_run(load, name):
    """Every scheme is built, purifies an image, and needs as many network evaluations as the configuration asks."""
    plan = load(f"fashion-mnist/{name}", ["data.images=1", "draws=1"])
    experiment = Sweep(plan, torch.device("cpu"), equal_evaluations=not plan.unequal)
    assert len(experiment.checked) == len(plan.points) and all(each.evaluations > 0 for each in experiment.checked)


def test_a_scheme_changes_the_section_or_replaces_it(tmp_path):
    """Keys of another scheme mean nothing to this one, and options of another solver nothing to that solver."""
    purifier = {"t_star": 0.1, "solver": {"name": "a", "order": 2}}
    schemes = {
        "same": {"scheme": "diffpure", "steps": 5},
        "solver": {"solver": {"name": "b", "rho": 7}},
        "other": {"scheme": "one_shot", "t_star": 0.2},
    }
    plan = load_compare(str(write(tmp_path / "c.yaml", schemes, purifier=purifier)))
    assert {point.name: point.values["purifier"] for point in plan.points} == {
        "same": purifier | {"scheme": "diffpure", "steps": 5},
        "solver": {"t_star": 0.1, "solver": {"name": "b", "rho": 7}},
        "other": {"scheme": "one_shot", "t_star": 0.2},
    }
    plan.dump(tmp_path / "config.yaml")
    assert load_compare(str(tmp_path / "config.yaml")).points == plan.points


def test_overrides_reach_schemes(config):
    plan = load_compare(str(config), ["schemes.uniform.steps=9", "purifier.t_star=0.2"])
    assert [(p.settings.purifier.steps, p.settings.purifier.t_star) for p in plan.points] == [
        (9, 0.2),
        (3, 0.2),
        (3, 0.2),
    ]


@pytest.mark.parametrize(
    ("schemes", "message"),
    [
        (None, "schemes: expected a mapping from two or more names"),
        (["a", "b"], "schemes: expected a mapping from two or more names"),
        ({"a": {}}, "schemes: expected a mapping from two or more names"),
        (
            {"a": {}, "b": None},
            "schemes.b: expected a mapping of changes to the purifier's section, {} for none, got None",
        ),
        ({"a": {}, "b": "heun"}, "schemes.b: expected a mapping"),
        ({"a": {}, "../b": {}}, "schemes: '../b' is to be a folder's name"),
        ({"a": {}, "compare.json": {}}, "schemes: 'compare.json' is to be a folder's name"),
        ({"a": {}, 3: {}}, "schemes: 3 is to be a folder's name"),
    ],
)
def test_schemes_that_make_no_comparison(schemes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_compare(str(write(tmp_path / "c.yaml", schemes)))


def test_refused_schemes_are_named(tmp_path, monkeypatch, capsys):
    config = write(tmp_path / "c.yaml", {"good": {}, "late": {"t_star": 2}, "typo": {"stepz": 3}})
    assert run(monkeypatch, "compare", config, "--out", tmp_path / "out", "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert "2 of 3 points cannot be run" in error and "  late: t_star must lie in (0, 1]" in error
    assert "  typo: unknown key 'purifier.stepz'; did you mean 'steps'?" in error and not (tmp_path / "out").exists()
