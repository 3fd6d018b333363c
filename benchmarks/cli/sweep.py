"""`purify sweep`."""

from typing import Annotated

import typer

from benchmarks.cli.machine_readable import in_folder
from benchmarks.cli.options import Device, Out, Overrides, Resume, complete_config, flag
from benchmarks.cli.points import close, run_points
from benchmarks.cli.run import Run
from benchmarks.cli.session import Result, Session, command


@command
def sweep(
    session: Session,
    config: Annotated[
        str,
        typer.Argument(
            help="A configuration as for bench, by itself or with a section `sweep:`, e.g. fashion-mnist/sweep.",
            autocompletion=complete_config,
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
    zipped: Annotated[bool, flag("--zip", help="Walk the lists of values together instead of combining them.")] = False,
    reference: Annotated[
        str, typer.Option(help="Number, from 0, or name of the point that the others are compared with.")
    ] = "0",
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
    resume: Resume = False,
) -> Result:
    """Measure a defence at several values of its configuration: clean and robust accuracy against cost.

    Every point is a bench run in a folder of its own. Writes sweep.json, sweep.md (a table), sweep.png (accuracy
    against each value) and pareto.png (accuracy against network evaluations), and compares all points with a reference,
    image by image. The exit code is 1 where a point failed.

    Every point measures the undefended classifier too. Attacks on it are the same whatever the purifier: leave them out
    by `models: [defended]` at each attack.
    """
    from benchmarks.config.sweep import load_sweep
    from benchmarks.reports.sweep_figures import save_sweep_curves

    plan = load_sweep(config, overrides, over, zipped)
    folder, result = run_points(Run(session, plan.kind, out, device, resume), plan, reference)
    if result.measured:
        save_sweep_curves(result, folder / "sweep.png")
    close(session, folder, result)
    return in_folder(folder, result)
