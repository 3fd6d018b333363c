"""The command line as a user runs it."""

import pytest

from benchmarks import cli


def run(monkeypatch, *arguments):
    """The command line's exit code."""
    monkeypatch.setattr("sys.argv", ["purify", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code
