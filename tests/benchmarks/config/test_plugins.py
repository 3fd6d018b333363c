"""A user's own attack, purifier, solver, data set, classifier and score network, each one file outside of the package,
by name from YAML and from Python.
"""

import hashlib
import json
import pickle
import shutil
import types
from importlib import metadata
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import config, datasets, load_classifier
from benchmarks.cli import app
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError
from benchmarks.experiments.bench import Bench
from benchmarks.runs.folder import RunError
from purify import DiffPure, ScoreModel, load_score_model, plugins, purifiers

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples" / "plugins"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the examples, not below the current folder."""
    here, own = tmp_path / "here", tmp_path / "own"
    here.mkdir()
    shutil.copytree(EXAMPLES, own)
    monkeypatch.chdir(here)
    return own


def single(out):
    rows = json.loads((out / "summary.json").read_text())["results"]
    return {(row["model"], row["attack"]): row["single"]["value"] for row in rows}


@pytest.mark.parametrize("name", ["bench", "blend"])
def test_everything_of_ones_own_from_yaml(folder, tmp_path, name):
    """Two of eight images differ by 16 / 255 between their halves, which the attack moves by 24 / 255 against each
    other; the others by 128 / 255. Without the attack all are right.
    """
    arguments = ["bench", str(folder / f"{name}.yaml"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    found = single(tmp_path / "out")
    assert found["undefended", "none"] == 1.0 and found["undefended", "Corner"] == 0.75
    assert found["defended", "none"] == 1.0 and 0.75 <= found["defended", "Corner"] <= 1.0
    # the run's own copy of the configuration, in another folder, still means the same files
    again = CliRunner().invoke(app, [*arguments, "--resume"], catch_exceptions=False)
    assert again.exit_code == 0 and single(tmp_path / "out") == found


def test_from_python(folder, monkeypatch):
    monkeypatch.chdir(folder)
    score = load_score_model("module:toy_score.py:make", check=False)
    assert isinstance(score, ScoreModel) and not score.training
    data = datasets.load("module:toy_dataset.py:make")
    assert data.images.shape == (64, 1, 8, 8) and data.classes == ("left", "right")
    x = datasets.as_floats(data.images)
    assert torch.equal(load_classifier("module:toy_classifier.py:make")(x).argmax(1), data.labels)
    by_name = DiffPure(score, steps=3, solver={"name": "module:toy_solver.py:Shrink", "share": 0.5})
    shrink = plugins.load("solvers", "module:toy_solver.py:Shrink", "a class")
    assert by_name.solver == shrink(0.5)
    # without noise left the last step gives what the network expects, whatever the share
    keys = torch.arange(4)
    by_settings = DiffPure(score, steps=3, solver=shrink(0.5))
    assert torch.equal(by_name(x[:4], keys), by_settings(x[:4], keys))
    blend = purifiers.find("module:toy_purifier.py:Blend")
    assert torch.equal(blend(score, weight=0.0)(x[:4], keys), x[:4])


def test_keys_of_a_plugin_are_its_constructors(folder):
    settings = config.load(BenchConfig, str(folder / "bench.yaml"))
    (attack,) = settings.attacks
    assert attack.own == {"iterations": 2, "eot": 2, "share": 0.5, "batch_size": 256} and attack.label == "Corner"
    assert type(attack).model_fields["share"].description == "of epsilon that a step is long, in (0, 1]."
    assert attack.white_box and attack.facts(defended=False)["eot"] == 1
    assert attack.reduced(0.5).own["iterations"] == 1
    purifier = config.load(BenchConfig, str(folder / "blend.yaml")).purifier
    assert purifier.options == {"t": 0.1, "weight": 0.7}
    # a plug-in is a part of what a run is told from others by
    assert "scheme" in purifier.model_dump(exclude_defaults=True)


@pytest.mark.parametrize("name", ["bench", "blend"])
def test_sections_of_plugins_travel_and_read_back(folder, tmp_path, name):
    settings = config.load(BenchConfig, str(folder / f"{name}.yaml"))
    assert pickle.loads(pickle.dumps(settings)) == settings
    config.dump(settings, tmp_path / "dumped.yaml")
    assert config.load(BenchConfig, str(tmp_path / "dumped.yaml")) == settings
    assert settings.model_dump() == config.load(BenchConfig, str(tmp_path / "dumped.yaml")).model_dump()


def test_where_files_are_looked_for(folder, monkeypatch):
    beside = plugins.beside("module:toy_attack.py:Corner", folder)
    assert beside == f"module:{folder / 'toy_attack.py'}:Corner"
    monkeypatch.chdir(folder.parent)
    assert plugins.beside("module:toy_attack.py:Corner", folder) == "module:own/toy_attack.py:Corner"
    for name in ("module:absent.py:make", "module:package.module:make", "timm:resnet18"):
        assert plugins.beside(name, folder) == name


def test_the_code_behind_a_name(folder):
    path = folder / "toy_attack.py"
    source = plugins.source("attacks", f"module:{path}:Corner")
    assert source.path == path.resolve() and source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("file", ["toy_attack", "toy_classifier", "toy_dataset", "toy_score", "toy_solver"])
def test_a_run_of_changed_code_does_not_go_on(folder, tmp_path, file):
    arguments = ["bench", str(folder / "bench.yaml"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    with (folder / f"{file}.py").open("a") as code:
        code.write("\n# as it was, but for this line\n")
    with pytest.raises(RunError, match="made with another configuration, other weights, images or code"):
        CliRunner().invoke(app, [*arguments, "--resume"], catch_exceptions=False)


PLAIN = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Grey:
    threat: object
    steps: int = 40

    def __call__(self, model, x, y, keys=None, progress=None):
        return self.threat.project(x * 0 + 0.5, x)

@dataclass(frozen=True)
class Once:
    threat: object

    def __call__(self, model, x, y, keys=None, progress=None):
        return self.threat.project(x * 0 + 0.5, x)
"""


def test_a_callable_that_declares_nothing_can_and_costs_what_it_says(folder):
    """What is no `attacks.Attack` takes no targets; its effort is that of its settings, or unknown."""
    (folder / "plain.py").write_text(PLAIN)
    threat = {"norm": "Linf", "epsilon": 0.1}

    def section(name, **more):
        values = config.load_values(str(folder / "bench.yaml"))
        values["attacks"] = [{"kind": f"module:{folder / 'plain.py'}:{name}", "threat": threat, **more}]
        return config.validate(BenchConfig, values).attacks[0]

    grey, once = section("Grey"), section("Once")
    assert grey.facts(True)["iterations"] == 40 and grey.lengths == ("steps",)
    assert grey.reduced(0.5).own["steps"] == 20 and grey.evaluations(False).forward == 40
    assert once.facts(True)["iterations"] is None and once.evaluations(False).forward == 1
    with pytest.raises(ConfigError, match="no targeted form; leave out `target`"):
        section("Grey", target=1)


def test_changed_code_is_run_again(tmp_path):
    file = tmp_path / "own.py"
    made = []
    for value in (1, 2, 2):
        file.write_text(f"def make():\n    return {value}\n")
        made.append(plugins.load("classifiers", f"module:{file}:make", "a function"))
    assert [make() for make in made] == [1, 2, 2] and made[1] is made[2]


def test_entry_points(folder, monkeypatch):
    """As an installed package declares them: corner = "package.module:Corner" among its entry points purify.attacks."""
    monkeypatch.syspath_prepend(str(folder))
    known = [
        ("attacks", "corner", "toy_attack:Corner"),
        ("purifiers", "blend", "toy_purifier:Blend"),
        ("solvers", "shrink", "toy_solver:Shrink"),
        ("datasets", "halves", "toy_dataset:make"),
        ("classifiers", "sides", "toy_classifier:make"),
        ("score_models", "halves", "toy_score:make"),
    ]

    def entry_points(group, name):
        return metadata.EntryPoints(
            metadata.EntryPoint(of, value, f"purify.{kind}")
            for kind, of, value in known
            if (f"purify.{kind}", of) == (group, name)
        )

    monkeypatch.setattr(plugins, "metadata", types.SimpleNamespace(entry_points=entry_points))
    values = {
        "data": {"name": "halves", "images": 4},
        "classifier": "sides",
        "score": "halves",
        "draws": 2,
        "attacks": [{"kind": "corner", "threat": {"norm": "Linf", "epsilon": 0.1}}],
    }
    for purifier in ({"steps": 2, "solver": "shrink"}, {"scheme": "blend"}):
        bench = Bench(config.validate(BenchConfig, {**values, "purifier": purifier}), torch.device("cpu"))
        assert type(bench.rows[1].attack).__name__ == "Corner"
    assert plugins.source("attacks", "corner").path == folder / "toy_attack.py"


BROKEN = """
import torch
from dataclasses import dataclass

constant = 5

def number(score=None, threat=None, eot=1, share=0.5):
    return 7

def fails(score=None, threat=None, eot=1, share=0.5):
    raise RuntimeError("no such thing")

@dataclass(frozen=True)
class Needs:
    threat: object
    network: torch.nn.Module

def empty():
    from benchmarks.datasets import Dataset
    return Dataset(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64), ("a",))
"""


def with_plugin(key, name):
    """The example's values with another plug-in at a key."""
    values = config.read(EXAMPLES / "bench.yaml")
    config.set_value(values, key, name)
    return values


KEYS = {
    "data.name": "data.name",
    "classifier": "classifier.name",
    "score": "score.name",
    "attacks.0.kind": "attacks.0",
    "purifier.scheme": "purifier",
    "purifier.solver": "purifier.solver",
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.py:make", "no file at .*absent.py"),
        ("broken.py:mak", "broken.py has no 'mak'; did you mean"),
        ("broken.py:constant", "'constant' is a int, expected"),
        ("syntax.py:make", "running .*syntax.py failed: SyntaxError"),
        ("raises.py:make", "running .*raises.py failed: ZeroDivisionError"),
        ("no_such_package.module:make", "no module 'no_such_package' on Python's path"),
        ("broken.py", "expected module:path.to.module:function"),
        ("broken.py:number", "(number\\(\\) returned|made) a int"),
        ("broken.py:fails", "failed: RuntimeError: no such thing"),
    ],
)
def test_bad_plugins_name_their_key_and_file(tmp_path, monkeypatch, key, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "syntax.py").write_text("def make(:\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=f"{KEYS[key]}.*{message}") as raised:
        Bench(config.validate(BenchConfig, with_plugin(key, f"module:{name}")), torch.device("cpu"))
    assert name.partition(":")[0] in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks.0.shar": 1}, "unknown key 'attacks.0.shar'; did you mean 'share'?"),
        ({"attacks.0.share": 2}, "attacks.0.share: must lie in (0, 1], got 2"),
        ({"attacks.0.eot": "many"}, "attacks.0.eot: Input should be a valid integer"),
        ({"attacks.0.threat": {"norm": "L1", "epsilon": 1}}, "attacks.0.threat.norm: Input should be 'Linf' or 'L2'"),
        ({"attacks.0.target": 1}, "attacks.0: attack 'Corner': module:"),
        ({"purifier.solver.shares": 1}, "purifier.solver: solver='module:"),
        ({"purifier.solver.share": 2}, "share must lie in [0, 1), got 2"),
        ({"purifier.scheme": "module:{}/toy_purifier.py:Blend", "purifier.steps": 3}, "unknown key 'purifier.steps'"),
    ],
)
def test_keys_of_plugins_are_checked_like_all_others(changes, message):
    values = config.read(EXAMPLES / "bench.yaml")
    for key, value in changes.items():
        config.set_value(values, key, value.format(EXAMPLES) if isinstance(value, str) else value)
    with pytest.raises(ConfigError) as raised:
        config.validate(BenchConfig, values)
    assert message in str(raised.value)


def test_what_no_file_can_give_and_data_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text(BROKEN)
    with pytest.raises(
        ConfigError, match="attacks.0.kind: module:broken.py:Needs: its parameter 'network' can be given"
    ):
        config.validate(BenchConfig, with_plugin("attacks.0.kind", "module:broken.py:Needs"))
    with pytest.raises(ConfigError, match="data.name: .*broken.py:empty: images must be a uint8 tensor"):
        config.validate(BenchConfig, with_plugin("data.name", "module:broken.py:empty")).data.load()
