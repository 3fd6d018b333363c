"""`purify compare`."""

from typing import Annotated

import typer

from benchmarks.cli.machine_readable import in_folder
from benchmarks.cli.options import Device, Out, Overrides, Resume, complete_config
from benchmarks.cli.points import close, run_points
from benchmarks.cli.run import Run
from benchmarks.cli.session import Result, Session, command


@command
def compare(
    session: Session,
    config: Annotated[
        str,
        typer.Argument(help="A configuration as for bench, with a section `schemes:`.", autocompletion=complete_config),
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
) -> Result:
    """Compare several purifiers at equal network evaluations, on the same images, under the same attacks.

    Every scheme is a bench run in a folder of its own. Writes compare.md (a table), compare.json and pareto.png. The
    exit code is 1 where a scheme failed.

    Every run measures the undefended classifier too. Attacks on it are the same whatever the scheme: leave them out by
    `models: [defended]` at each attack.
    """
    from benchmarks.config.sweep import load_compare

    plan = load_compare(config, overrides)
    run = Run(session, plan.kind, out, device, resume)
    folder, result = run_points(run, plan, reference, equal_evaluations=not (unequal or plan.unequal))
    close(session, folder, result)
    return in_folder(folder, result)
