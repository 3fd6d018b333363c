"""`purify speed`."""

from typing import Annotated

import typer

from benchmarks.cli.machine_readable import plain
from benchmarks.cli.options import Device
from benchmarks.cli.run import Run
from benchmarks.cli.session import Result, Session, command


@command
def speed(
    session: Session,
    score: Annotated[str, typer.Option(help="Packaged score model, or a .safetensors file.")] = "fashion-mnist",
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations of a purification.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; medians are reported.")] = 7,
    device: Device = None,
) -> Result:
    """Time purification and its gradients against the bare network evaluations they contain, and attacks' averaged
    gradients against theirs.
    """
    from rich.table import Table

    from benchmarks import runs
    from benchmarks.experiments.speed import measure
    from purify import load_score_model

    run = Run(session, "speed", None, device)
    result = measure(load_score_model(score), batch, steps, rounds, run.device)
    place = runs.environment(run.device)["device"]
    table = Table("part", "seconds", "ratio", title=f"{batch} images, {steps} evaluations, {place}")
    for group in (result, result.eot):
        for name, seconds in group.seconds.items():
            table.add_row(
                name, f"{seconds:.3f}", f"{group.ratio[name]:.2f}", end_section=name == list(group.seconds)[-1]
            )
    session.show(table)
    return {"images": batch, "steps": steps, "device": place, **plain(result)}
