"""`purify sweep`: its points, what they are compared with, and what is kept of an interrupted one."""

import json
import re

import numpy as np
import pytest
import torch
import yaml

from benchmarks import cli, config
from benchmarks.config.sections import ConfigError
from benchmarks.config.sweep import load_sweep
from benchmarks.evaluation.statistics import paired_difference
from benchmarks.experiments import bench as bench_module
from benchmarks.experiments.bench import Bench
from benchmarks.experiments.sweep import Sweep
from benchmarks.experiments.sweep_points import Outcome, pareto_front
from benchmarks.reports.sweep_figures import _dodged, save_pareto
from benchmarks.reports.terminal import sweep_table
from benchmarks.runs.schema import Points, read_points

TINY = {
    "data": {"name": "fashion-mnist-embedded", "images": 4},
    "classifier": "fashion-mnist",
    "score": "fashion-mnist",
    "purifier": {"t_star": 0.1, "steps": 2, "grid": "quadratic"},
    "draws": 2,
    "batch_size": 2,
    "pictures": 0,
    "attacks": [{"kind": "pgd", "threat": {"norm": "Linf", "epsilon": 0.1}, "steps": 1, "models": ["defended"]}],
}
AXES = {"purifier.t_star": [0.05, 0.15], "purifier.steps": [1, 2]}
NAMES = ["t_star=0.05,steps=1", "t_star=0.05,steps=2", "t_star=0.15,steps=1", "t_star=0.15,steps=2"]
BATCHES = 3 * 2  # of a point: two clean rows and an attacked one, of two batches


def run(monkeypatch, *arguments):
    """The command line's exit code."""
    monkeypatch.setattr("sys.argv", ["purify", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def write(path, **changes):
    path.write_text(yaml.safe_dump(TINY | changes, sort_keys=False))
    return path


def images_of(folder):
    """(model, attack) -> accuracy of every image, from images.jsonl."""
    lines = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    names = dict.fromkeys((line["model"], line["attack"]) for line in lines)
    right = {
        name: [np.equal(li["predictions"], li["label"]).mean() for li in lines if (li["model"], li["attack"]) == name]
        for name in names
    }
    return {name: np.array(values) for name, values in right.items()}


def without_time(points):
    """Of the points of a sweep.json, what depends neither on the day nor on the other points."""
    facts = [{key: value for key, value in point.items() if key not in ("seconds", "results")} for point in points]
    rows = [
        [{key: row[key] for key in row if key not in ("seconds_per_image", "pareto")} for row in point["results"]]
        for point in points
    ]
    return facts, rows


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A configuration with a section `sweep:`."""
    return write(tmp_path_factory.mktemp("config") / "swept.yaml", sweep=AXES)


@pytest.fixture(scope="module")
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


# the results


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


def test_figures_and_table(folder, result):
    from PIL import Image
    from rich.console import Console

    for name in ("sweep.png", "pareto.png"):
        with Image.open(folder / name) as image:
            assert image.size[0] > image.size[1] > 300 and len(image.convert("L").getcolors()) > 50
    lines = (folder / "sweep.md").read_text().splitlines()
    assert lines[0].startswith("| point | NFE |") and all(
        any(line.startswith(f"| {point['name']} |") for line in lines) for point in result["points"]
    )
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(sweep_table(read_points(folder)))
    text = console.export_text()
    assert "…" not in text and text.count("t_star=0.15") == 2 and text.count("2 NFE") == 2


@pytest.fixture
def drawn(monkeypatch):
    """Instead of a closed figure: `drawn.figure`."""
    from matplotlib import pyplot as plt

    class Kept:
        figure = None

    monkeypatch.setattr(plt, "close", lambda figure: setattr(Kept, "figure", figure))
    yield Kept
    monkeypatch.undo()
    plt.close(Kept.figure)


def test_equal_costs_are_drawn_side_by_side_by_name(result, tmp_path, drawn):
    result["points"] = [point for point in result["points"] if point["network_evaluations"] == 2]
    save_pareto(Points.model_validate(result), tmp_path / "pareto.png")
    (axis,) = drawn.figure.axes
    assert axis.get_title() == "2 network evaluations each"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["t_star=0.05\nsteps=2", "t_star=0.15\nsteps=2"]
    clean, pgd = (container.lines[0].get_xdata() for container in axis.containers)
    assert clean == pytest.approx([-0.1, 0.9]) and pgd == pytest.approx([0.1, 1.1])


def test_the_front_is_drawn_at_true_costs(folder, tmp_path, drawn):
    save_pareto(read_points(folder), tmp_path / "pareto.png")
    assert [axis.get_title() for axis in drawn.figure.axes] == ["clean", "pgd, Linf 0.1"]
    for axis in drawn.figure.axes:
        front = next(line for line in axis.lines if line.get_label() == "Pareto front of point estimates")
        assert set(front.get_xdata()) <= {1, 2}


def test_equal_costs_keep_near_their_place():
    places = _dodged([9.0] * 14 + [20.0, 5.0, 5.0])
    assert places[:14] == sorted(places[:14]) and len(set(places[:14])) == 14
    assert (places[0], places[13]) == pytest.approx((9 * 0.98, 9 * 1.02))
    assert places[14] == 20 and places[15:] == pytest.approx([4.975, 5.025])


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


def test_report_prints_the_table_again(folder, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "report", folder) == 0
    assert capsys.readouterr().out.count("t_star=0.15") == 2
    assert run(monkeypatch, "report", folder, folder / NAMES[0]) == 0  # a point is a bench run
    text = capsys.readouterr().out
    assert text.count("t_star=0.15") == 2 and "| t* | steps | model |" in text
    assert run(monkeypatch, "report", folder, "--curve", "steps", "--out", tmp_path / "curve.png") == 2
    assert "--curve draws over bench runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", '{"schema": "certify 1"}', "is a run of `purify certify`.*its own table is printed by"),
        ("summary.json", "[1]", "holds no mapping but list"),
        ("sweep.json", "{", "holds no readable sweep.json"),
        ("compare.json", '{"schema": 7}', "compare.json is not of schema 1"),
    ],
)
def test_report_says_what_it_cannot_print(name, text, message, tmp_path, monkeypatch, capsys):
    (tmp_path / name).write_text(text)
    assert run(monkeypatch, "report", tmp_path) == 2
    assert re.search(message, capsys.readouterr().err)


def test_points_of_different_images_are_not_paired(tmp_path):
    plan = load_sweep(str(write(tmp_path / "c.yaml", attacks=[])), over=["data.first=0,4"])
    result = Sweep(plan, torch.device("cpu")).run(tmp_path, lambda _: None)
    assert result.complete and all(row.paired is None for row in result.points[1].results)


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


# the points


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


# resumed


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
