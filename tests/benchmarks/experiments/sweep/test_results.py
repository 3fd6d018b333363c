"""A sweep's results: those of the points' own runs, their costs, what they are compared with, and the Pareto front."""

import json

import numpy as np
import torch
from command_line import run
from sweep_command import NAMES, write

from benchmarks.config.sweep import load_sweep
from benchmarks.evaluation.statistics import paired_difference
from benchmarks.experiments.sweep import Sweep
from benchmarks.experiments.sweep_points import pareto_front
from benchmarks.reports.terminal import sweep_table


def images_of(folder):
    """(model, attack) -> accuracy of every image, from images.jsonl."""
    lines = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    names = dict.fromkeys((line["model"], line["attack"]) for line in lines)
    right = {
        name: [np.equal(li["predictions"], li["label"]).mean() for li in lines if (li["model"], li["attack"]) == name]
        for name in names
    }
    return {name: np.array(values) for name, values in right.items()}


def test_every_point_is_the_bench_run_of_its_values(folder, result, tmp_path, monkeypatch):
    assert [point["name"] for point in result["points"]] == NAMES == [point["folder"] for point in result["points"]]
    assert result["complete"] and result["schema"] == 1 and result["reference"] == NAMES[0]
    plain, out = write(tmp_path / "plain.yaml"), tmp_path / "out"
    assert (
        run(
            monkeypatch,
            "bench",
            plain,
            "--set",
            "purifier.t_star=0.15",
            "--set",
            "purifier.steps=2",
            "--out",
            out,
            "--device",
            "cpu",
        )
        == 0
    )
    for name in ("config.yaml", "images.jsonl"):
        assert (out / name).read_text() == (folder / NAMES[3] / name).read_text()
    summary = json.loads((out / "summary.json").read_text())
    for row, expected in zip(result["points"][3]["results"], summary["results"], strict=True):
        keys = ("model", "attack", "threat", "single", "worst_of", "majority")
        assert {key: row[key] for key in keys} == {key: expected[key] for key in keys}
        assert row["network_evaluations_per_image"] * 4 == expected["network_evaluations"]


def test_cost_is_that_of_one_purification_and_of_the_row(result):
    for point, (t_star, steps) in zip(result["points"], [(0.05, 1), (0.05, 2), (0.15, 1), (0.15, 2)], strict=True):
        assert point["changes"] == {"purifier.t_star": t_star, "purifier.steps": steps}
        assert point["network_evaluations"] == steps and point["seconds"] > 0
        rows = {(row["model"], row["attack"]): row for row in point["results"]}
        assert rows["defended", "none"]["network_evaluations_per_image"] == 2 * steps
        # the attack's one gradient goes through the network forward and, recomputed, backward
        assert rows["defended", "pgd"]["network_evaluations_per_image"] == (2 + 2) * steps
        assert rows["undefended", "none"]["network_evaluations_per_image"] == 0


def test_differences_are_paired_by_image(folder, result):
    own = [images_of(folder / name) for name in NAMES]
    for point, per_image in zip(result["points"][1:], own[1:], strict=True):
        for row in point["results"]:
            name = row["model"], row["attack"]
            assert row["paired"] == json.loads(json.dumps(paired_difference(per_image[name], own[0][name]).as_dict()))
    assert all(row["paired"] is None for row in result["points"][0]["results"])


def test_pareto_rows_are_those_that_no_cheaper_point_beats(result):
    for attack in ("none", "pgd"):
        rows = [
            next(r for r in p["results"] if (r["model"], r["attack"]) == ("defended", attack)) for p in result["points"]
        ]
        pairs = [(p["network_evaluations"], r["single"]["value"]) for p, r in zip(result["points"], rows, strict=True)]
        for (cost, value), row in zip(pairs, rows, strict=True):
            assert row["pareto"] == (not any((c <= cost and v > value) or (c < cost and v >= value) for c, v in pairs))


def test_pareto_front():
    assert pareto_front([10, 5, 20, 5, 40], [0.5, 0.3, 0.4, 0.2, 0.9]) == [1, 0, 4]
    assert pareto_front([10, 10, 10], [0.5, 0.5, 0.4]) == [0, 1]
    assert pareto_front([1, 2], [0.7, 0.7]) == [0]


def test_rows_of_other_attacks_are_marked_and_have_a_front_of_their_own(tmp_path):
    plan = load_sweep(
        str(write(tmp_path / "c.yaml")), over=["attacks.0.threat.epsilon=0.1,0.02", "attacks.0.steps=1,2"]
    )
    result = Sweep(plan, torch.device("cpu")).run(tmp_path, lambda _: None)
    rows = [{row.attack: row for row in point.defended} for point in result.measured]
    assert [row["pgd"].note for row in rows] == [
        None,
        "another attack",
        "another threat",
        "another threat, another attack",
    ]
    assert all(row["none"].note is None for row in rows) and all(row["pgd"].paired for row in rows[1:])
    assert all(row["pgd"].pareto for row in rows)  # at equal cost, the strongest would lose to the weakest
    assert [row["pgd"].settings["steps"] for row in rows] == [1, 2, 1, 2]
    difference = list(sweep_table(result).columns[-1].cells)
    assert [cell.split("]")[-1] for cell in difference] == [
        "-",
        "-",
        "",
        "\nanother attack",
        "",
        "\nanother threat",
        "",
        "\nanother threat\nanother attack",
    ]


def test_points_of_different_images_are_not_paired(tmp_path):
    plan = load_sweep(str(write(tmp_path / "c.yaml", attacks=[])), over=["data.first=0,4"])
    result = Sweep(plan, torch.device("cpu")).run(tmp_path, lambda _: None)
    assert result.complete and all(row.paired is None for row in result.points[1].results)
