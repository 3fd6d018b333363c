"""`purify configs`."""

from typing import Annotated

import typer

from benchmarks.cli.options import Overrides

configs = typer.Typer(invoke_without_command=True, help="The packaged configurations: list them, show one.")


@configs.callback()
def configs_list(context: typer.Context) -> None:
    """List the packaged configurations: name, the command that takes it, what it is."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.table import Table

    from benchmarks.config.presets import listed

    table = Table()
    table.add_column("name", no_wrap=True)
    table.add_column("command", no_wrap=True)
    table.add_column("what it is")
    for preset in listed():
        table.add_row(preset.name, f"purify {preset.command}", preset.comment)
    Console().print(table)


@configs.command("show")
def configs_show(
    name: Annotated[str, typer.Argument(help="A name of `purify configs`, or a YAML file.")],
    overrides: Overrides = None,
    complete: Annotated[
        bool, typer.Option("--resolved", help="All values, those of extended files merged in, without comments.")
    ] = False,
) -> None:
    """Print a configuration with its comments, and the files that it extends."""
    from benchmarks.config import presets

    if overrides and not complete:
        raise ValueError("--set goes with --resolved: a file is shown as it is")
    print(presets.resolved(name, overrides) if complete else presets.text_of(name), end="")
