"""The points of a sweep: from a section or from options, their names, and those that are refused."""

import pytest
import torch
from command_line import run
from sweep_command import AXES, NAMES, write

from benchmarks import config
from benchmarks.config.sections import ConfigError
from benchmarks.config.sweep import load_sweep
from benchmarks.experiments import bench as bench_module
from benchmarks.experiments.sweep import Sweep
from benchmarks.experiments.sweep_points import Outcome


def test_section_and_options_say_the_same(swept, tmp_path):
    plain = write(tmp_path / "plain.yaml")
    given, asked = (
        load_sweep(str(swept)),
        load_sweep(str(plain), over=["purifier.t_star=0.05,0.15", "purifier.steps=1,2"]),
    )
    assert given.points == asked.points and [point.name for point in asked.points] == NAMES
    assert given.points[1].settings == config.load(
        bench_module.BenchConfig, str(plain), ["purifier.t_star=0.05", "purifier.steps=2"]
    )


def test_zip_walks_lists_together(swept, tmp_path):
    zipped = load_sweep(str(swept), zipped=True)
    assert [point.name for point in zipped.points] == [NAMES[0], NAMES[3]]
    assert load_sweep(str(write(tmp_path / "zip.yaml", sweep=AXES | {"mode": "zip"}))).points == zipped.points


def test_an_option_replaces_the_values_of_a_key(swept):
    assert [p.name for p in load_sweep(str(swept), over=["purifier.t_star=0.2"]).points] == [
        "t_star=0.2,steps=1",
        "t_star=0.2,steps=2",
    ]


def test_names_tell_keys_and_sections_apart(tmp_path):
    plan = load_sweep(
        str(write(tmp_path / "c.yaml")), over=["purifier.steps=2", "attacks.0.steps=1,2", "score={name: fashion-mnist}"]
    )
    assert [point.name for point in plan.points] == [
        f"purifier.steps=2,0.steps={n},score=name-fashion-mnist" for n in (1, 2)
    ]
    assert [point.settings.attacks[0].steps for point in plan.points] == [1, 2]
    (long,) = load_sweep(str(write(tmp_path / "c.yaml")), over=[f"data.root={'x' * 300}"]).points
    assert len(long.name) == 100


def test_a_fraction_is_swept_as_the_number_that_it_is(tmp_path):
    plan = load_sweep(
        str(write(tmp_path / "c.yaml")), over=["attacks.0.threat.epsilon=8/255,0.1", "classifier=fashion-mnist"]
    )
    assert [point.name for point in plan.points] == [
        "epsilon=8-255,classifier=fashion-mnist",
        "epsilon=0.1,classifier=fashion-mnist",
    ]
    result = Sweep(plan, torch.device("cpu")).result([Outcome(), Outcome()])
    expected = [
        {"attacks.0.threat.epsilon": pytest.approx(value), "classifier": "fashion-mnist"} for value in (8 / 255, 0.1)
    ]
    assert [point.changes for point in result.points] == expected


def test_the_packaged_sweep():
    plan = load_sweep("fashion-mnist/sweep")
    assert [(point.name, point.settings.purifier.t_star) for point in plan.points] == [
        (f"t_star={t}", t) for t in (0.05, 0.08, 0.11, 0.15)
    ]


def test_the_stored_configuration_gives_the_same_points(swept, tmp_path):
    plan = load_sweep(str(swept), zipped=True)
    plan.dump(tmp_path / "config.yaml")
    assert load_sweep(str(tmp_path / "config.yaml")).points == plan.points


@pytest.mark.parametrize(
    ("section", "over", "message"),
    [
        ({}, [], "nothing to sweep: give --over KEY=VALUE"),
        ([1], [], "sweep: expected a mapping from keys such as purifier.t_star to lists of values, got \\[1\\]"),
        ({"purifier.t_star": []}, [], "purifier.t_star: expected a list of one or more values, got \\[\\]"),
        ({"purifier.t_star": 0.1}, [], "purifier.t_star: expected a list of one or more values, got 0.1"),
        (AXES | {"mode": "all"}, [], "sweep.mode: expected one of grid, zip, got 'all'"),
        (
            {"purifier.t_star": [0.1], "purifier.steps": [2, 3], "mode": "zip"},
            [],
            "equal length, got 1 values of purifier.t_star, 2 values of purifier.steps",
        ),
        ({"purifier.t_star": [0.1, 0.10]}, [], "two points are called 't_star=0.1'"),
        ({"attacks.5.steps": [1]}, [], "sweep: attacks.5.steps: there is nothing at this key"),
        ({}, ["purifier.t_star"], "--over takes key=value,value,..., got 'purifier.t_star'"),
        ({}, ["purifier.t_star="], "purifier.t_star: expected a list of one or more values"),
        ({}, ["purifier.t_star=["], "--over purifier.t_star: '\\[' is not a list of YAML values"),
        ({}, ["purifier.steps=2", "purifier.steps=3"], "--over purifier.steps is given twice"),
    ],
)
def test_sections_that_make_no_points(section, over, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_sweep(str(write(tmp_path / "c.yaml", sweep=section)), over=over)


def test_all_refused_points_are_named_before_any_work(tmp_path, monkeypatch, capsys):
    """One unknown to the configuration, two refused by the purifier itself, among good ones."""
    out = tmp_path / "out"
    command = ("sweep", write(tmp_path / "c.yaml"), "--out", out, "--device", "cpu")
    assert (
        run(
            monkeypatch,
            *command,
            "--over",
            "purifier.t_star=0.1,2,0.05",
            "--over",
            "purifier.grid=uniform,quadratic,cubic",
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "5 of 9 points cannot be run, so none was:" in error
    assert "  t_star=2,grid=uniform, t_star=2,grid=quadratic: " in error and "got 2" in error
    assert "  t_star=0.1,grid=cubic, t_star=2,grid=cubic, t_star=0.05,grid=cubic: " in error and "got 'cubic'" in error
    assert run(monkeypatch, *command, "--over", "purifier.t_stra=0.1,0.2") == 2
    assert "t_stra=0.1, t_stra=0.2: unknown key 'purifier.t_stra'; did you mean 't_star'?" in capsys.readouterr().err
    assert run(monkeypatch, *command, "--over", "purifier.steps=2,3", "--reference", "7") == 2
    assert "--reference '7' is neither a number from 0 to 1 nor one of steps=2, steps=3" in capsys.readouterr().err
    assert not out.exists()
