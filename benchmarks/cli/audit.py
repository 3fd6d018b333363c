"""`purify audit`."""

from typing import Annotated

import typer

from benchmarks.cli.machine_readable import in_folder
from benchmarks.cli.options import DEFAULT_BENCH, Device, Out, Overrides, complete_config
from benchmarks.cli.run import Run
from benchmarks.cli.session import Result, Session, command


@command
def audit(
    session: Session,
    config: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of a packaged configuration, as for bench.", autocompletion=complete_config
        ),
    ] = DEFAULT_BENCH,
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
) -> Result:
    """Measure every gradient mode of a defence against a float64 reference on the same noise: error, time, memory.

    Writes audit.json and audit.png. The exit code is 1 where the `exact` gradient is not what it claims to be.
    """
    from benchmarks.config.bench import BenchConfig
    from benchmarks.experiments.audit import Audit
    from benchmarks.reports import terminal as report
    from benchmarks.reports.figures import save_audit_chart

    run = Run(session, "audit", out, device)
    experiment = Audit(run.load(BenchConfig, config, overrides or []), run.device)
    with run.folder() as folder:
        result = experiment.run(folder, session.say)
    if result.sweep:
        save_audit_chart(result.sweep, folder / "audit.png")
    session.show(*report.audit_tables(result))
    for verdict in result.verdicts:
        say = session.warning if verdict.passed is False else session.print
        mark = {True: "ok  ", False: "FAIL", None: "    "}[verdict.passed]
        say(f"{mark} {verdict.mode} ({verdict.steps} steps, {verdict.precision}): {verdict.text}")
    session.print(f"results and figure: {folder}")
    session.failed = any(verdict.passed is False for verdict in result.verdicts)
    return in_folder(folder, result)
