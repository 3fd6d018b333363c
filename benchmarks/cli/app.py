"""The command line, put together: one file a command."""

from typing import Annotated

import typer

from benchmarks.cli import session
from benchmarks.cli.audit import audit
from benchmarks.cli.bench import bench
from benchmarks.cli.certify import certify
from benchmarks.cli.clean import clean
from benchmarks.cli.compare import compare
from benchmarks.cli.configs import configs
from benchmarks.cli.models import models
from benchmarks.cli.options import flag
from benchmarks.cli.report import report
from benchmarks.cli.rivals import rivals
from benchmarks.cli.session import EXIT_CODES, Session
from benchmarks.cli.speed import speed
from benchmarks.cli.sweep import sweep
from benchmarks.cli.train import train
from benchmarks.cli.validate import validate
from benchmarks.cli.versions import print_versions

# Imports of what computes stand inside the commands: bad arguments and `--help` are answered at once.

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.callback(invoke_without_command=True, epilog=EXIT_CODES)
@session.group
def about(
    session: Session,
    context: typer.Context,
    version: Annotated[
        bool, flag("--version", help="Print the version; with --verbose, those of what it stands on too.")
    ] = False,
) -> None:
    """Put a diffusion model in front of an image classifier and measure honestly how robust the pair is."""
    if version:
        session.finish(print_versions)
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.fail("Missing command.")


for function in (bench, validate, sweep, compare, rivals, audit, certify, clean, report, speed, train):
    app.command(epilog=EXIT_CODES)(function)
app.add_typer(models, name="models", epilog=EXIT_CODES)
app.add_typer(configs, name="configs", epilog=EXIT_CODES)


def main() -> None:
    """Runs the command line: exit code 2 and one message for bad input, 130 after Ctrl-C, see `session.EXIT_CODES`."""
    session.run(app)


if __name__ == "__main__":
    main()
