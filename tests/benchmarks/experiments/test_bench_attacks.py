"""`purify bench` with attacks through other models, with targets, beyond norm balls: what the summary says of them, and
what old batches lack.
"""

import json

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from attacks import Cost
from benchmarks import config
from benchmarks.config.bench import BenchConfig
from benchmarks.experiments.bench import Bench
from benchmarks.reports import markdown
from benchmarks.reports import terminal as report
from benchmarks.runs.schema import Summary

LINF = {"norm": "Linf", "epsilon": 0.1}
COMMON = {"threat": LINF, "steps": 2, "models": ["defended"]}
SETTINGS = {
    "data": {"name": "fashion-mnist-embedded", "images": 4},
    "classifier": "fashion-mnist",
    "score": "fashion-mnist",
    "purifier": {"t_star": 0.1, "steps": 2},
    "draws": 2,
    "batch_size": 3,
    "attacks": [
        {"kind": "pgd", **COMMON, "eot": 2},
        {"kind": "pgd", "name": "transfer", **COMMON, "eot": 2, "through": "classifier"},
        {
            "kind": "pgd",
            "name": "short",
            **COMMON,
            "eot": 2,
            "through": "surrogate",
            "surrogate": {"steps": 1, "gradient": "bpda"},
        },
        {"kind": "pgd", "name": "seek", "threat": LINF, "steps": 2, "target": 5},
        {"kind": "apgd", "threat": LINF, "iterations": 2, "models": ["defended"]},
        {"kind": "deviated", "threat": LINF, "iterations": 2, "eot": 1},
        {"kind": "stadv", "iterations": 2, "models": ["defended"]},
    ],
}


@pytest.fixture(scope="module")
def bench():
    return Bench(config.validate(BenchConfig, SETTINGS), torch.device("cpu"))


@pytest.fixture(scope="module")
def run(bench, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    summary, done = bench.run(out, lambda _: None)
    return out, summary, {(row.model_name, row.attack_name): evaluation for row, evaluation in done}


def test_rows_say_what_was_attacked_and_at_what_cost(run):
    out, summary, _ = run
    assert json.loads((out / "summary.json").read_text()) == summary.as_json()
    summary = summary.as_json()
    rows = {(r["model"], r["attack"]): r for r in summary["results"]}
    assert [name for model, name in rows if model == "undefended"] == ["none", "seek"]
    plain, transfer, short, seek = (rows["defended", name] for name in ("pgd", "transfer", "short", "seek"))
    assert [r["attack_cost"] for r in (plain, transfer, short)] == [
        {"forward": 16, "backward": 16},
        {"forward": 8, "backward": 8},
        {"forward": 16, "backward": 16},
    ]
    assert rows["defended", "none"]["attack_cost"] == {"forward": 0, "backward": 0}
    assert [(r["through"], r["eot"], r["gradient"]) for r in (plain, transfer, short)] == [
        ("deployed", 2, "exact"),
        ("classifier", 1, None),
        ("surrogate", 2, "bpda"),
    ]
    assert short["surrogate"] == {"steps": 1, "gradient": "bpda"} and plain["surrogate"] is None
    judged = 4 * 2 * 2  # images, draws, steps
    assert transfer["network_evaluations"] == judged  # the attack did not touch the score network
    assert short["network_evaluations"] == judged + 16 * 1 * 1 and plain["network_evaluations"] == judged + 16 * 2 * 2
    assert seek["target"] == 5 and 0 <= seek["reached"]["value"] <= 1 and plain["reached"] is None
    assert all(r["undefined"] == 0 for r in rows.values())
    assert rows["defended", "stadv"]["threat"] == "StAdv 0.05"
    assert {(p["attack"], p["reference"], p["through"], p["target"]) for p in summary["paired"]} >= {
        ("transfer", "pgd", "classifier", None),
        ("seek", "pgd", "deployed", 5),
    }
    assert summary["budget"] is None and summary["diagnostics"] == []


def test_distances_are_the_threats_own(run):
    lines = [json.loads(line) for line in (run[0] / "images.jsonl").read_text().splitlines()]
    for attack, limit in (("pgd", 0.1), ("stadv", 0.05), ("none", 0.0)):
        distances = [line["distance"] for line in lines if (line["model"], line["attack"]) == ("defended", attack)]
        assert len(distances) == 4 and max(distances) <= limit * 1.02


def test_batches_keep_everything_and_those_of_old_still_load(run, bench):
    out, _, evaluations = run
    path = out / "batches" / "defended.seek.000000.safetensors"
    loaded = bench._load_batch(path)
    assert loaded.attack_cost == Cost(3 * (1 + 2), 3 * 2)  # one call tells the number of classes
    assert torch.equal(loaded.targets, evaluations["defended", "seek"].targets[:3])
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    del facts["attack_cost"]
    old = out / "old.safetensors"
    save_file(
        {name: tensor for name, tensor in load_file(path).items() if name != "targets"},
        old,
        metadata={"facts": json.dumps(facts)},
    )
    loaded = bench._load_batch(old)
    assert loaded.attack_cost is None and loaded.targets is None
    assert torch.equal(loaded.predictions, evaluations["defended", "seek"].predictions[:3])


def test_the_table_fits_80_columns_and_says_it_all(run):
    console = Console(width=80)
    with console.capture() as captured:
        console.print(report.table(run[1]))
    printed = captured.get()
    for text in ("transfer", "surrogate steps=1", "target 5", "target reached:", "cost 16 / 16", "StAdv 0.05"):
        assert text in printed
    assert "…" not in printed
    assert "| defended | transfer (2 steps, EOT 1, transfer) | - |" in markdown.runs_table([run[1]])


def test_summaries_of_old_can_be_printed(run):
    """Without the keys that came later."""
    old = run[1].as_json()
    for key in ("flags", "budget", "diagnostics"):
        del old[key]
    for row in old["results"]:
        for key in ("attack_cost", "undefined", "reached", "through", "surrogate", "target", "unit", "settings"):
            row.pop(key, None)
    old = Summary.model_validate(old)
    assert report.flag_lines(old) == [] and report.table(old).row_count == len(old.results)
    assert "pgd (2 steps, EOT 2)" in markdown.runs_table([old])


def test_a_verdict_on_another_model_is_not_the_defences(tmp_path):
    """The official code's own accuracy is of the model that it attacked."""
    short = {
        "kind": "autoattack",
        "threat": LINF,
        "version": "custom",
        "attacks": ["apgd-ce"],
        "iterations": 1,
        "models": ["defended"],
    }
    made = SETTINGS | {
        "draws": 1,
        "attacks": [{**short, "name": "own"}, {**short, "name": "bare", "through": "classifier"}],
    }
    summary, _ = Bench(config.validate(BenchConfig, made), torch.device("cpu")).run(tmp_path, lambda _: None)
    verdicts = {r.attack: r.own_verdict for r in summary.results if r.model == "defended"}
    assert verdicts["none"] is None and verdicts["own"] is not None and verdicts["bare"] is None


FEATURES = """
import torch

def network():
    made = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 4))
    torch.nn.init.constant_(made[1].weight, {weight})
    return made.eval()
"""


def test_the_network_of_a_distance_is_part_of_a_run(tmp_path):
    """A run whose distance is measured by other weights is another run, and the summary names them; two networks make
    two threats.
    """
    threat = {"features": f"module:{tmp_path}/features.py:network", "epsilon": 0.5}
    listed = [
        {"kind": "perceptual", "threat": threat, "iterations": 1},
        {"kind": "low_frequency", "threat": threat | {"features": "fashion-mnist"}},
    ]
    made = config.validate(BenchConfig, SETTINGS | {"attacks": listed})
    benches = []
    for weight in (1, 2, 2):
        (tmp_path / "features.py").write_text(FEATURES.format(weight=weight))
        benches.append(Bench(made, torch.device("cpu")))
    assert benches[0].identity != benches[1].identity == benches[2].identity
    assert set(benches[0].weights) == {"classifier", "score", "features of perceptual", "features of low_frequency"}
    assert benches[0].weights["features of perceptual"] != benches[1].weights["features of perceptual"]
    assert len({str(row.threat) for row in benches[0].rows}) == 3  # with none at all
