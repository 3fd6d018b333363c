"""What the tests of `purify sweep` share."""

import json

import pytest
from command_line import run
from sweep_command import AXES, write

from benchmarks.experiments import bench as bench_module


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """A configuration with a section `sweep:`."""
    return write(tmp_path_factory.mktemp("config") / "swept.yaml", sweep=AXES)


@pytest.fixture(scope="session")
def folder(swept, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "sweep", swept, "--out", out, "--device", "cpu") == 0
    return out


@pytest.fixture
def result(folder):
    return json.loads((folder / "sweep.json").read_text())


@pytest.fixture
def batches(monkeypatch):
    """Counts the batches that points measure; `batches.stop_at` interrupts there."""

    class Counter:
        done, stop_at = 0, None

    counter, evaluate = Counter(), bench_module.evaluate

    def counted(*arguments, **options):
        if counter.done == counter.stop_at:
            raise KeyboardInterrupt
        counter.done += 1
        return evaluate(*arguments, **options)

    monkeypatch.setattr(bench_module, "evaluate", counted)
    return counter
