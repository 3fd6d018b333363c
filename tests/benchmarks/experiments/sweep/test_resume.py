"""What is kept of a sweep that was interrupted, failed in part, or lies where another is to go."""

import json

import pytest
from command_line import run
from sweep_command import NAMES, write

from benchmarks.experiments.bench import Bench

BATCHES = 3 * 2  # of a point: two clean rows and an attacked one, of two batches


def without_time(points):
    """Of the points of a sweep.json, what depends neither on the day nor on the other points."""
    facts = [{key: value for key, value in point.items() if key not in ("seconds", "results")} for point in points]
    rows = [
        [{key: row[key] for key in row if key not in ("seconds_per_image", "pareto")} for row in point["results"]]
        for point in points
    ]
    return facts, rows


def test_another_sweep_is_not_overwritten_nor_mixed(folder, swept, monkeypatch, capsys, batches):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert run(monkeypatch, "sweep", swept, "--out", folder) == 2
    assert "already holds files" in capsys.readouterr().err
    command = ("sweep", swept, "--out", folder, "--device", "cpu", "--resume")
    assert run(monkeypatch, *command, "--set", "draws=3") == 2
    assert (
        f"the configuration differs from {folder / 'config.yaml'} at {', '.join(NAMES)}; give the same one"
        in capsys.readouterr().err
    )
    assert run(monkeypatch, *command, "--over", "purifier.steps=1") == 2
    assert f"at {NAMES[1]}, {NAMES[3]};" in capsys.readouterr().err
    assert run(monkeypatch, "sweep", swept, "--out", folder / NAMES[0], "--device", "cpu", "--resume") == 2
    assert "is not the configuration of a sweep: nothing to sweep" in capsys.readouterr().err
    assert run(monkeypatch, "sweep", swept, "--out", folder / "nothing", "--device", "cpu", "--resume") == 2
    assert "holds no sweep (no config.yaml)" in capsys.readouterr().err
    assert batches.done == 0 and before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_interrupted_sweep_goes_on_with_what_it_has(swept, result, tmp_path, monkeypatch, capsys, batches):
    """Stopped in the second of two points: nothing is measured twice, and the numbers are those of the same points of
    the other sweep.
    """
    out = tmp_path / "out"
    command = ("sweep", swept, "--zip", "--out", out, "--device", "cpu")
    batches.stop_at = BATCHES + 3
    assert run(monkeypatch, *command) == 130
    assert f"stopped; go on with the same command and --out {out} --resume" in capsys.readouterr().err
    partial = json.loads((out / "sweep.json").read_text())
    assert [point["state"] for point in partial["points"]] == ["finished", "waiting"] and not partial["complete"]
    batches.stop_at, done = None, batches.done
    assert run(monkeypatch, *command, "--resume") == 0
    assert (done, batches.done) == (BATCHES + 3, 2 * BATCHES)
    finished = json.loads((out / "sweep.json").read_text())
    assert without_time(finished["points"]) == without_time([result["points"][0], result["points"][3]])
    # another reference is no other sweep
    assert run(monkeypatch, *command, "--resume", "--reference", NAMES[3]) == 0
    assert batches.done == 2 * BATCHES
    turned = json.loads((out / "sweep.json").read_text())
    assert turned["reference"] == NAMES[3]
    for before, after in zip(finished["points"][1]["results"], turned["points"][0]["results"], strict=True):
        assert before["paired"]["value"] == -after["paired"]["value"]


def test_a_point_that_fails_does_not_lose_the_others(tmp_path, monkeypatch, capsys, batches):
    """Its reason is told at the end; resumed, it alone is tried again."""
    measured = Bench.run

    def failing(self, *arguments):
        if self.settings.purifier.steps == 2:
            raise RuntimeError("out of memory")
        return measured(self, *arguments)

    config, out = write(tmp_path / "c.yaml", attacks=[]), tmp_path / "out"
    command = ("sweep", config, "--over", "purifier.steps=1,2", "--reference", "1", "--out", out, "--device", "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "run", failing)
        assert run(patch, *command) == 1
    assert "FAILED  steps=2: RuntimeError: out of memory (more in steps=2/error.txt" in capsys.readouterr().err
    result = json.loads((out / "sweep.json").read_text())
    assert [point["state"] for point in result["points"]] == ["finished", "failed"] and not result["complete"]
    assert all(row["paired"] is None for point in result["points"] for row in point["results"])
    assert "in failing" in (out / "steps=2" / "error.txt").read_text()
    done = batches.done
    assert run(monkeypatch, *command, "--resume") == 0
    assert (done, batches.done) == (4, 2 * 4)
    assert json.loads((out / "sweep.json").read_text())["complete"] and not (out / "steps=2" / "error.txt").exists()
