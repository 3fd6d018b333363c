"""What a run will cost, against what it does cost; fitting a run into a time."""

import json

import pytest
import torch
import yaml

from benchmarks import cli, config
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError
from benchmarks.experiments import cost_estimate
from benchmarks.experiments.bench import Bench
from benchmarks.experiments.cost_estimate import fit
from benchmarks.reports import markdown
from benchmarks.reports.text import reduction_lines
from benchmarks.runs.cost import CostEstimate, RowCost
from benchmarks.runs.durations import duration, parse_duration
from benchmarks.runs.schema import read_summary

LINF = {"norm": "Linf", "epsilon": 0.1}
TINY = {
    "data": {"name": "fashion-mnist-embedded", "images": 20},
    "classifier": "fashion-mnist",
    "score": "fashion-mnist",
    "purifier": {"t_star": 0.05, "steps": 2},
    "draws": 2,
    "pictures": 0,
    "attacks": [
        {"kind": "pgd", "threat": LINF, "steps": 6, "eot": 2},
        {"kind": "square", "threat": LINF, "queries": 160, "models": ["undefended"]},
        {
            "kind": "autoattack",
            "threat": LINF,
            "version": "custom",
            "attacks": ["apgd-ce"],
            "iterations": 4,
            "models": ["undefended"],
        },
    ],
}


@pytest.fixture(scope="module")
def bench():
    return Bench(config.validate(BenchConfig, TINY), torch.device("cpu"))


def test_the_estimate_is_what_the_run_costs(bench):
    """Attacks whose cost is a line in their length are known exactly from two short ones, for all images."""
    made = cost_estimate.estimate(bench)
    assert made.images == 20 and made.seconds == pytest.approx(20 * sum(row.seconds for row in made.rows))
    assert 100 < made.memory_mib < 20_000
    rows = {(row.model, row.attack): row for row in made.rows}
    assert list(rows) == [(row.model_name, row.attack_name) for row in bench.rows]
    for row in bench.rows:
        if row.attack_name not in ("square", "autoattack"):  # images leave these on the way
            done = bench.evaluate(row, slice(0, 4))
            estimated = rows[row.model_name, row.attack_name]
            cost = (estimated.forward * 4, estimated.backward * 4, estimated.network_evaluations * 4)
            assert cost == (done.attack_cost.forward, done.attack_cost.backward, done.network_evaluations)
    assert (
        rows["undefended", "square"].forward == pytest.approx(160, rel=0.05)
        and rows["undefended", "square"].backward == 0
    )
    assert all(row.fixed >= 0 and row.variable >= 0 and row.seconds > 0 for row in rows.values())


# 10 seconds an image
ROWS = (RowCost("defended", "none", 0.5, 0.0, 0, 0, 0), RowCost("defended", "pgd", 0.5, 9.0, 12, 12, 0))
SETTINGS = config.validate(BenchConfig, TINY | {"data": {"name": "fashion-mnist-embedded", "images": 100}})


@pytest.mark.parametrize(
    ("budget", "spent", "images", "steps", "estimated"),
    [
        (2000, 0, 100, 6, 1000),  # it fits as it is
        (500, 0, 45, 6, 450),  # nine tenths of the time
        (500, 100, 36, 6, 360),
        (100, 0, 16, 4, 90),  # a share of 0.514 of the 9 seconds, in whole iterations, rounded up
    ],
)
def test_images_are_reduced_first(budget, spent, images, steps, estimated):
    given, record = fit(SETTINGS, CostEstimate(ROWS, 100, 0), budget, spent)
    assert (given.data.images, given.attacks[0].steps) == (images, steps)
    assert record.seconds == budget and record.estimated_seconds == pytest.approx(estimated)
    assert record.reduced.get("data.images") == (None if images == 100 else (100, images))
    assert ("attacks.pgd.steps" in record.reduced) == (steps != 6)
    assert given.draws == SETTINGS.draws
    lines = "\n".join(reduction_lines(record))
    assert ("100 -> " in lines) == (images != 100) and ("weaker attack" in lines) == (steps != 6)


def test_a_time_that_nothing_fits_in():
    """The least is 16 images, 1 second each and a tenth of 9, over the safety of 0.9."""
    with pytest.raises(
        ConfigError,
        match="16 images and a tenth of the attacks' iterations take about 34 s, more than 30 s; give that much",
    ):
        fit(SETTINGS, CostEstimate(ROWS, 100, 0), 30)
    assert fit(SETTINGS, CostEstimate(ROWS, 100, 0), 34)[0].attacks[0].steps == 1


def test_times_as_they_are_written():
    assert [parse_duration(text) for text in ("45s", "30m", "2h", "1h30m", "1.5m")] == [45, 1800, 7200, 5400, 90]
    for text in ("", "30", "m", "0s", "30 m", "1d", "-5s"):
        with pytest.raises(ValueError, match="is not a time: expected for instance 45s"):
            parse_duration(text)
    assert [duration(seconds) for seconds in (5, 119, 1800, 9000)] == ["5 s", "119 s", "30 min", "2.5 h"]


# the command line


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["purify", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


@pytest.fixture
def file(tmp_path):
    small = TINY | {"attacks": TINY["attacks"][:1]}
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(small))
    return tmp_path / "bench.yaml"


def test_estimate_prints_and_stops(file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(monkeypatch, "bench", file, "--estimate", "--out", out, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "for 20 images and 2 draws" in printed and "MiB" in printed
    (line,) = [
        line.split()
        for line in printed.splitlines()
        if "defended" in line and "pgd" in line and "undefended" not in line
    ]
    # 20 images, 6 steps, EOT 2; 2 network evaluations, twice; 2 draws
    assert line[:5] == ["defended", "pgd", "240", "240", "1040"]
    assert not out.exists()


def test_a_budget_reduces_and_says_so(file, tmp_path, monkeypatch, capsys):
    """A made-up estimate of 1 second an image: 20 images into 20 seconds go as 17 or fewer, some of the time being
    gone.
    """
    out = tmp_path / "out"
    made = CostEstimate((RowCost("defended", "pgd", 0.5, 0.5, 0, 0, 0),), 20, 100)
    monkeypatch.setattr(cost_estimate, "estimate", lambda *_: made)
    assert run(monkeypatch, "bench", file, "--budget", "20s", "--out", out, "--device", "cpu") == 0
    summary = json.loads((out / "summary.json").read_text())
    assert 16 <= summary["images"] <= 18
    assert summary["budget"]["seconds"] == 20 and summary["budget"]["reduced"] == {
        "data.images": [20, summary["images"]]
    }
    printed = capsys.readouterr()
    assert (
        f"data.images: 20 -> {summary['images']}" in printed.err
        and f"data.images: 20 -> {summary['images']}" in printed.out
    )
    assert f"| {summary['images']} (reduced by --budget) |" in markdown.runs_table([read_summary(out)])
    assert yaml.safe_load((out / "config.yaml").read_text())["data"]["images"] == summary["images"]
    assert run(monkeypatch, "bench", out / "config.yaml", "--out", out, "--resume", "--device", "cpu") == 0
    assert json.loads((out / "summary.json").read_text())["budget"] == summary["budget"]  # it stays with the run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "soon"), "--budget 'soon' is not a time"),
        (("--budget", "5m", "--resume", "--out", "x"), "go on by `purify bench x/config.yaml --out x --resume`"),
        (("--budget", "5m", "--diagnose"), "--budget does not cover --diagnose"),
        (("--estimate", "--diagnose"), "--estimate is of a whole run"),
    ],
)
def test_options_that_do_not_go_together(arguments, message, file, monkeypatch, capsys):
    assert run(monkeypatch, "bench", file, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [59.0, 61.0])
def test_a_long_run_says_so_at_its_start(seconds, file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost_estimate, "rough_seconds", lambda _: seconds)
    assert (
        run(
            monkeypatch,
            "bench",
            file,
            "--out",
            tmp_path / "out",
            "--set",
            "attacks=[]",
            "--set",
            "data.images=2",
            "--device",
            "cpu",
        )
        == 0
    )
    assert ("about 61 s in all" in capsys.readouterr().err) == (seconds > 60)


def test_the_rough_count_follows_the_settings(bench, monkeypatch):
    """With every call at 1 ms: draws, plus the attack's forward evaluations and three more for each that is
    differentiated.
    """
    monkeypatch.setattr(cost_estimate, "_seconds_of_call", lambda *_: 1e-3)
    undefended = 2 + (2 + 6 * 4) + (2 + 160) + (2 + 4 * 4)
    defended = 2 + (2 + 6 * 2 * 4)
    assert cost_estimate.rough_seconds(bench) == pytest.approx(20 * 1e-3 * (undefended + defended))
