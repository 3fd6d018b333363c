"""What users of version 0.1.0 import is where it was."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import attacks
import benchmarks
import purify
from purify import moved

DATA = Path(__file__).parent / "data"

OF_OLD = {
    purify: "ADP CheckpointError DefendedClassifier DenoisedSmoothing DiffPure DiffusionClassifier FixedRandomness GDMP"
    " Gradual Langevin Likelihood OneShot Purifier PurifyPlusPlus Resized ScoreModel Sequential Smoothed ensemble"
    " load_score_model noise_keys save_score_model schedules solvers",
    attacks: "APGD FAB L2 PGD SPSA AutoAttack ColorChange Cost DeviatedReconstruction DiffHammer EOTAutoAttack"
    " FeatureDistance Flow Linf LowFrequency PerceptualPGD ReColorAdv Square StAdv Strongest Threat count_cost"
    " lpips_distance strongest",
    benchmarks: "Evaluation evaluate load_classifier datasets",
}
MODULES = [
    *(f"purify.{old}" for old in moved.PURIFY),
    *(f"benchmarks.{old}" for old in benchmarks.MOVED),
]


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package, names in OF_OLD.items() for name in names.split()]
)
def test_a_public_name_is_where_it_was(package, name):
    assert name in package.__all__
    assert getattr(package, name) is not None
    assert name in dir(package)


@pytest.mark.parametrize("name", MODULES)
def test_a_moved_module_imports_under_its_old_name(name, monkeypatch):
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.warns(DeprecationWarning, match=rf"{name} is now "):
        old = importlib.import_module(name)
    package, attribute = name.split(".")
    assert getattr(sys.modules[package], attribute) is old
    assert old.__name__.startswith(f"{package}.") and old.__name__ != name
    assert old is importlib.import_module(old.__name__)


def test_the_change_log_says_where_modules_are():
    root = Path(purify.__file__).parents[1]
    if not (root / "CHANGELOG.md").is_file():
        pytest.skip("not a checkout: there is no change log")
    text = (root / "CHANGELOG.md").read_text()
    for package, table in (("purify", moved.PURIFY), ("benchmarks", benchmarks.MOVED)):
        for old, new in table.items():
            assert f"| `{package}.{old}` | `{package}.{new}` |" in text


def test_an_old_name_hands_out_the_same_classes():
    with pytest.warns(DeprecationWarning):
        sys.modules.pop("purify.smoothing", None)
        from purify.smoothing import Smoothed
    assert Smoothed is purify.Smoothed


def timeless(value):
    if isinstance(value, dict):
        left_out = ("seconds", "environment", "peak_memory")
        return {name: timeless(of) for name, of in value.items() if name not in left_out}
    return [timeless(of) for of in value] if isinstance(value, list) else value


def test_a_run_begun_by_an_old_version_goes_on(tmp_path):
    """All batches but one are there; the summary is that of the whole run then, but for what later versions add."""
    folder = tmp_path / "run"
    (folder / "batches").mkdir(parents=True)
    for file in (DATA / "run_0.1.0").rglob("*"):
        if file.is_file() and file.name != "summary.json":
            (folder / file.relative_to(DATA / "run_0.1.0")).write_bytes(file.read_bytes())
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "batches").iterdir()}
    arguments = ["bench", folder / "config.yaml", "--out", folder, "--resume", "--device", "cpu"]
    run = subprocess.run([sys.executable, "-m", "purify", *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "batches").iterdir()}
    assert set(after) - set(before) == {"defended.pgd.000002.safetensors"}
    assert before.items() <= after.items()  # what was done is not done again
    expected, got = (timeless(json.loads((at / "summary.json").read_text())) for at in (DATA / "run_0.1.0", folder))
    rows = got.pop("results")
    assert [
        {name: row[name] for name in old} for row, old in zip(rows, expected["results"], strict=True)
    ] == expected.pop("results")
    assert expected.items() <= got.items()
