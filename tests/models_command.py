"""`purify models` as a user runs it, and a small network in the registry that is not there."""

import json

import golden
import torch
from typer.testing import CliRunner

from benchmarks import cli
from purify.zoo.registry import Entry, SourceFile

NAME = "ddpm.small"
CONFIG = json.loads((golden.FOLDER / f"{NAME}.json").read_text())["config"]
STATE = golden.network(NAME).state_dict()


def as_file(content, path):
    torch.save(content, path)
    return path.read_bytes()


def score(name="small", sources=("https://example.org/a.pt",), config=None, architecture="ddpm", **facts):
    return Entry(
        name,
        "score",
        (SourceFile("a.pt", sources, **facts),),
        "https://example.org",
        "MIT",
        architecture,
        config or CONFIG,
    )


def run(*arguments):
    result = CliRunner().invoke(cli.app, ["models", *map(str, arguments)], env={"COLUMNS": "300"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
