"""`purify sweep` and `purify compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.cli.options import Device, Out, Overrides, Resume, required_out, said_how_to_go_on, say

if TYPE_CHECKING:
    from benchmarks.config.sweep import Plan
    from benchmarks.runs.schema import Points


def sweep(
    config: Annotated[
        str,
        typer.Argument(
            help="A configuration as for bench, by itself or with a section `sweep:`, e.g. fashion-mnist/sweep."
        ),
    ],
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            metavar="KEY=VALUE,...",
            help="Values of one key of the configuration, e.g. purifier.steps=5,10; repeatable: all combinations.",
        ),
    ] = None,
    zipped: Annotated[
        bool, typer.Option("--zip", help="Walk the lists of values together instead of combining them.")
    ] = False,
    reference: Annotated[
        str, typer.Option(help="Number, from 0, or name of the point that the others are compared with.")
    ] = "0",
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
    resume: Resume = False,
) -> None:
    """Measure a defence at several values of its configuration: clean and robust accuracy against cost.

    Every point is a bench run in a folder of its own. Writes sweep.json, sweep.md (a table), sweep.png (accuracy
    against each value) and pareto.png (accuracy against network evaluations), and compares all points with a reference,
    image by image. The exit code is 1 where a point failed.

    Every point measures the undefended classifier too. Attacks on it are the same whatever the purifier: leave them out
    by `models: [defended]` at each attack.
    """
    from rich.console import Console

    from benchmarks.config.sweep import load_sweep
    from benchmarks.reports import terminal as report
    from benchmarks.reports.sweep_figures import save_sweep_curves

    folder, result = _run_points(load_sweep(config, overrides, over, zipped), out, device, resume, reference)
    if result.measured:
        save_sweep_curves(result, folder / "sweep.png")
    Console().print(report.sweep_table(result))
    _close_points(folder, result)


def compare(
    config: Annotated[
        str, typer.Argument(help="A configuration as for bench, with a section `schemes:`.")
    ] = "fashion-mnist/compare",
    unequal: Annotated[
        bool,
        typer.Option(
            "--unequal",
            help=(
                "Allow schemes that need different numbers of network evaluations, as `unequal: true` in the"
                " configuration does."
            ),
        ),
    ] = False,
    reference: Annotated[
        str, typer.Option(help="Number, from 0, or name of the scheme that the others are compared with.")
    ] = "0",
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
    resume: Resume = False,
) -> None:
    """Compare several purifiers at equal network evaluations, on the same images, under the same attacks.

    Every scheme is a bench run in a folder of its own. Writes compare.md (a table), compare.json and pareto.png. The
    exit code is 1 where a scheme failed.

    Every run measures the undefended classifier too. Attacks on it are the same whatever the scheme: leave them out by
    `models: [defended]` at each attack.
    """
    from rich.console import Console

    from benchmarks.config.sweep import load_compare
    from benchmarks.reports import terminal as report

    plan = load_compare(config, overrides)
    folder, result = _run_points(plan, out, device, resume, reference, equal_evaluations=not (unequal or plan.unequal))
    Console().print(report.sweep_table(result))
    _close_points(folder, result)


def _run_points(
    plan: "Plan",
    out: Path | None,
    device: str | None,
    resume: bool,
    reference: str = "0",
    equal_evaluations: bool = False,
) -> tuple[Path, "Points"]:
    """The folder, and the contents of its KIND.json."""
    from benchmarks import runs
    from benchmarks.experiments import cost_estimate
    from benchmarks.experiments.sweep import Sweep

    if resume:
        plan.check_same(required_out(out) / "config.yaml")
    experiment = Sweep(plan, runs.pick_device(device), reference, equal_evaluations, estimate=not resume)
    if experiment.seconds > cost_estimate.WORTH_SAYING:
        say(f"{len(plan.points)} points, about {cost_estimate.duration(experiment.seconds)} in all, by a rough count")
    folder = required_out(out) if resume else runs.make_folder(out, plan.kind)
    with runs.locked(folder), said_how_to_go_on(folder):
        if not resume:
            plan.dump(folder / "config.yaml")
        return folder, experiment.run(folder, say)


def _close_points(folder: Path, result: "Points") -> None:
    """The figure and the Markdown table that both kinds have, and the last lines; leaves by exit code 1 where a point
    failed.
    """
    from benchmarks.reports import markdown
    from benchmarks.reports import terminal as report
    from benchmarks.reports.sweep_figures import save_pareto
    from benchmarks.runs.folder import write_text

    table = folder / f"{result.kind}.md"
    write_text(table, markdown.points_table(result) + "\n")
    say(f"the same as a Markdown table: {table}")

    if result.measured:
        save_pareto(result, folder / "pareto.png")
    say(f"results and figures: {folder}")
    failures = report.failure_lines(result)
    for line in failures:
        say(line)
    if failures:
        raise typer.Exit(1)
