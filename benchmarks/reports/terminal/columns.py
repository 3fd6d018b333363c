"""What the tables of a terminal share."""

from collections.abc import Iterable

from rich import box
from rich.table import Table

WIDTH = 17
"""Of the column of attacks, so that tables fit 80 columns."""


def titled(title: str, columns: Iterable[str]) -> Table:
    """An empty table."""
    result = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in columns:
        result.add_column(name)
    return result
