"""Options and answers that commands share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

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
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]


@contextmanager
def said_how_to_go_on(folder: Path) -> Iterator[None]:
    """Tells who stops a run how to resume it."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"stopped; go on with the same command and --out {folder} --resume")
        raise


def required_out(out: Path | None) -> Path:
    """The folder to go on in. Raises ValueError where none is named."""
    if out is None:
        raise ValueError("--resume needs --out: the folder of the run to go on with")
    return out


def say(text: str) -> None:
    """A line for the user, beside the results."""
    print(text, file=sys.stderr, flush=True)
