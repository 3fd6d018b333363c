"""A sweep's figures and tables, and `purify report` of its folder."""

import re

import pytest
from command_line import run
from sweep_command import NAMES

from benchmarks.reports.sweep_figures import _dodged, save_pareto
from benchmarks.reports.terminal import sweep_table
from benchmarks.runs.schema import Points, read_points


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
