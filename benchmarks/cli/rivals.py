"""`purify rivals`."""

from typing import Annotated

import typer

from benchmarks.cli.machine_readable import in_folder
from benchmarks.cli.options import DEFAULT_BENCH, Device, Out, Overrides, complete_config
from benchmarks.cli.run import Run
from benchmarks.cli.session import Result, Session, command


@command
def rivals(
    session: Session,
    config: Annotated[
        str,
        typer.Argument(
            help="A configuration as for bench: its models, data and first threat.", autocompletion=complete_config
        ),
    ] = DEFAULT_BENCH,
    out: Out = None,
    overrides: Overrides = None,
    images: Annotated[int, typer.Option(min=1, help="Images.")] = 16,
    iterations: Annotated[int, typer.Option(min=1, help="Gradient steps of every attack.")] = 10,
    eot: Annotated[int, typer.Option(min=1, help="Draws per gradient, on the defence.")] = 4,
    queries: Annotated[int, typer.Option(min=1, help="Queries of the ensembles' Square attack.")] = 200,
    device: Device = None,
) -> Result:
    """Compare our attacks with other packages' on the same models, images, budget and draws.

    Against pyautoattack always, against torchattacks and foolbox where they are installed. Writes rivals.json.
    """
    from benchmarks.config.bench import BenchConfig
    from benchmarks.experiments.rivals import Rivals
    from benchmarks.reports import terminal as report

    run = Run(session, "rivals", out, device)
    settings = run.load(BenchConfig, config, [*(overrides or []), f"data.images={images}"])
    contest = Rivals(settings, run.device, iterations, eot, queries)
    with run.folder() as folder:
        result = contest.run(folder, session.say)
    session.show(*report.rivals_tables(result))
    session.print(f"results: {folder / 'rivals.json'}")
    return in_folder(folder, result)
