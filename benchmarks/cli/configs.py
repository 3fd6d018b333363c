"""`purify configs`."""

from typing import Annotated

import typer

from benchmarks.cli.options import Overrides, complete_config, flag
from benchmarks.cli.session import EXIT_CODES, Result, Session, command, group

configs = typer.Typer(help="The packaged configurations: list them, show one.")


@configs.callback(invoke_without_command=True, epilog=EXIT_CODES)
@group
def configs_list(session: Session, context: typer.Context) -> None:
    """List the packaged configurations: name, the command that takes it, what it is."""
    if context.invoked_subcommand is None:
        session.finish(_list)


def _list(session: Session) -> Result:
    from rich.table import Table

    from benchmarks.config.presets import listed

    presets = listed()
    table = Table()
    table.add_column("name", no_wrap=True)
    table.add_column("command", no_wrap=True)
    table.add_column("what it is")
    for preset in presets:
        table.add_row(preset.name, f"purify {preset.command}", preset.comment)
    session.show(table)
    return presets


@configs.command("show", epilog=EXIT_CODES)
@command
def configs_show(
    session: Session,
    name: Annotated[
        str, typer.Argument(help="A name of `purify configs`, or a YAML file.", autocompletion=complete_config)
    ],
    overrides: Overrides = None,
    complete: Annotated[
        bool, flag("--resolved", help="All values, those of extended files merged in, without comments.")
    ] = False,
) -> Result:
    """Print a configuration with its comments, and the files that it extends."""
    from benchmarks.config import load_values, presets

    if overrides and not complete:
        raise ValueError("--set goes with --resolved: a file is shown as it is")
    text = presets.resolved(name, overrides) if complete else presets.text_of(name)
    session.print(text.rstrip("\n"))
    return {"name": name, "values": load_values(name, overrides), "text": text}
