"""`purify configs` and `purify validate`: what there is, and whether it is right, without running it."""

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks import config
from benchmarks.cli import app
from benchmarks.config import presets
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError
from benchmarks.config.validation import check


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """Neither weights nor data but those that come with the package."""
    for name in ("MODELS", "DATA"):
        monkeypatch.setenv(f"PURIFY_{name}", str(tmp_path / name))
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_list():
    listed = {preset.name: preset for preset in presets.listed()}
    assert len(listed) == len(list(config.configs_folder().rglob("*.yaml")))
    expected = {
        "fashion-mnist/bench": "bench",
        "fashion-mnist/audit": "audit",
        "fashion-mnist/certify": "certify",
        "fashion-mnist/compare": "compare",
        "cifar10/compare_solvers_clean": "compare",
        "cifar10/sweep_t_star": "sweep",
        "cifar10/train_score": "train",
    }
    assert {name: listed[name].command for name in expected} == expected
    assert listed["fashion-mnist/bench"].comment.startswith("The embedded default of `purify bench`")
    assert all(preset.comment for preset in listed.values())
    shown = run("configs")
    assert shown.exit_code == 0 and "fashion-mnist/bench" in shown.stdout and "purify certify" in shown.stdout


def test_show():
    """The file as it is, then what it extends."""
    shown = run("configs", "show", "fashion-mnist/full")
    folder = config.configs_folder() / "fashion-mnist"
    own, parent = ((folder / f"{name}.yaml").read_text().strip() for name in ("full", "bench"))
    assert shown.exit_code == 0 and shown.stdout.index(own) < shown.stdout.index(parent)
    assert shown.stdout.startswith(f"# {folder / 'full.yaml'}\n# The full setting")


def test_show_resolved():
    shown = run("configs", "show", "fashion-mnist/full", "--resolved", "--set", "seed=7")
    assert yaml.safe_load(shown.stdout) == config.load_values("fashion-mnist/full", ["seed=7"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("configs", "show", "fashion-mnist/ful"), "did you mean 'fashion-mnist/full'"),
        (("configs", "show", "fashion-mnist/full", "--set", "seed=1"), "--set goes with --resolved"),
        (("validate", "fashion-mnist/ful"), "did you mean 'fashion-mnist/full'"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(*arguments)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("fashion-mnist/bench", []),
        ("fashion-mnist/certify", []),
        ("fashion-mnist/compare", []),
        ("imagenet/diffpure_wrn-50-2", ["imagenet-val", "wide_resnet50_2", "imagenet256-adm-uncond"]),
        ("cifar10/train_score_small", ["train_jpeg.npz", "test_first1000.npz"]),
    ],
)
def test_right_whether_or_not_weights_and_data_are_here(name, missing):
    found = check(name)
    assert not found.problems and len(found.missing) == len(missing)
    assert all(part in text for part, text in zip(missing, found.missing, strict=True))
    shown = run("validate", name)
    assert shown.exit_code == 0
    assert (
        shown.stdout.splitlines()[0] == f"{name}: a configuration for `purify {found.command}`, nothing wrong with it"
    )


def test_every_problem_at_once():
    """What the sections say."""
    changes = ["draws=0", "purifier.t_stra=1", "attacks.0.steps=-1", "purifier.solver=eulr"]
    found = check("fashion-mnist/bench", changes)
    assert len(found.problems) == 4
    for begin in ("draws: ", "unknown key 'purifier.t_stra'", "attacks.0.pgd.steps: ", "purifier.solver: "):
        assert sum(line.startswith(begin) for line in found.problems) == 1


def test_every_problem_of_what_is_named():
    """What the parts say, each of its own; a data set by a wrong name is no missing one."""
    changes = [
        "data.name=fashion-mnst",
        "classifier=fashion-mnst",
        "purifier.t_star=3",
        "attacks.0.through=surrogate",
        "attacks.0.surrogate={step: 3}",
    ]
    found = check("fashion-mnist/bench", changes)
    assert not found.missing and len(found.problems) == 4
    for part in (
        "data.name: unknown data set 'fashion-mnst'",
        "packaged are fashion-mnist",
        "t_star must lie in (0, 1], got 3",
        "attack 'pgd', surrogate: unknown key 'purifier.step'",
    ):
        assert sum(part in line for line in found.problems) == 1


def test_points_are_checked_one_by_one():
    found = check("fashion-mnist/compare", ["schemes.bad={stepz: 3}"])
    assert found.command == "compare"
    assert found.problems == ["bad: unknown key 'purifier.stepz'; did you mean 'steps'?"]


def test_wrong_ones_exit_with_2(capsys, monkeypatch):
    from benchmarks.cli.app import main

    monkeypatch.setattr("sys.argv", ["purify", "validate", "fashion-mnist/bench", "--set", "draws=0"])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 2
    shown = capsys.readouterr().err
    assert "fashion-mnist/bench, for `purify bench`:\ndraws: Input should be greater than 0, got 0" in shown


def test_a_circle_is_no_endless_text(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match="goes round in a circle"):
        presets.text_of("a.yaml")


def test_the_copy_that_a_run_keeps_is_of_its_command(tmp_path):
    config.dump(config.load(BenchConfig, "fashion-mnist/bench"), tmp_path / "config.yaml")
    assert check(str(tmp_path / "config.yaml")).command == "bench"


def test_every_preset_is_of_the_command_that_it_says():
    """Those that `bench` or `audit` take are checked by that section; the others hold a key that it does not know."""
    for preset in presets.listed():
        if preset.command in ("bench", "audit"):
            config.load(BenchConfig, preset.name)
        else:
            with pytest.raises(ConfigError):
                config.load(BenchConfig, preset.name)
