"""How far a run is: a live bar on a terminal, lines elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Yields `update(done, note)`: a live bar with time left on a terminal, else a line every half minute; nothing
    where `console` is quiet.
    """
    if console.quiet:
        yield _silent
        return
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _line_progress(title, total)
        return
    description, note = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[note]}"))
    columns = (description, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), note)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, note="")

        def update(done: int, note: str = "") -> None:
            bar.update(task, completed=done, note=note)

        yield update


def _silent(done: int, note: str = "") -> None:
    pass


def _line_progress(title: str, total: int) -> Callable[[int, str], None]:
    started = last = time.monotonic()
    first: int | None = None

    def update(done: int, note: str = "") -> None:
        nonlocal last, first
        now = time.monotonic()
        first = done if first is None else first  # a resumed run does not start at 0
        if now - last < 30 or done == first:
            return
        last = now
        left = (now - started) * (total - done) / (done - first)
        print(f"{title}: {done}/{total}, {left / 60:.1f} min left {note}", file=sys.stderr, flush=True)

    return update
