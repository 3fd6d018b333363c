"""Options that commands share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer


def flag(*names: str, help: str) -> Any:
    """An option that is there or not: its help shows no value to give."""
    return typer.Option(*names, help=help, metavar="")


Out = Annotated[
    Path | None, typer.Option("--out", help="Folder for the results, new or empty. Default: runs/KIND-DATE-TIME.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value of the configuration, e.g. purifier.t_star=0.1; repeatable.",
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N. Default: a GPU where there is one.")]
Resume = Annotated[bool, flag("--resume", help="Go on with the run in --out.")]

DEFAULT_BENCH = "fashion-mnist/bench"


def complete_config(incomplete: str) -> Iterator[str]:
    """For the shell: packaged configurations, then folders and YAML files, that begin like this."""
    from benchmarks.config.files import known

    yield from (name for name in known() if name.startswith(incomplete))
    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    for path in sorted(folder.glob("*")):
        if str(path).startswith(incomplete) and (path.is_dir() or path.suffix in (".yaml", ".yml")):
            yield f"{path}/" if path.is_dir() else str(path)
