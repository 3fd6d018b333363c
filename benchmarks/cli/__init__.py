"""The command line."""

from benchmarks.cli.app import app, main

__all__ = ["app", "main"]
