"""Every `purify ...` that a page shows is one that the command line accepts: command, options, and configurations."""

import re
import shlex

import pytest
import typer
from pages import FENCE, PAGES, name, prose

from benchmarks import config as configs
from benchmarks.cli.app import app

SHELL = ("sh", "bash", "console")
IN_PROSE = re.compile(r"`(purify(?:\s[^`]*)?)`")
IN_SHELL = re.compile(r"(?:^|[\s;$])(purify\s[^;|&#\n]*)", re.MULTILINE)
PLACEHOLDER = re.compile(r"[A-Z_]+(\.\w+|\.\.\.)?")  # CONFIG, NAME..., FILE.json
WRITTEN_BY_ITSELF = "command-line.md"


def commands_in(page):
    text = page.read_text()
    found = [" ".join(command.split()) for command in IN_PROSE.findall(prose(page))]
    for language, block in FENCE.findall(text):
        if language in SHELL:
            found += [command.strip() for command in IN_SHELL.findall(block) if "docker run" not in block]
    return found


def check(line):
    """Raises where the command line would refuse `line`."""
    words = [word.strip("[]") for word in shlex.split(line)[1:]]
    command, given = typer.main.get_command(app), ["purify"]
    while getattr(command, "commands", None) and words and not words[0].startswith("-"):
        given.append(words.pop(0))
        assert given[-1] in command.commands, f"no command {' '.join(given)!r}"
        command = command.commands[given[-1]]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in known | {"--help"}]
    assert not unknown, f"{' '.join(given)} has no option {', '.join(unknown)}"
    if getattr(command, "commands", None) or "--help" in words or all(word.startswith("-") for word in words):
        return  # mentioned, not shown as it would be run
    config = command.make_context(" ".join(given), list(words)).params.get("config")
    if isinstance(config, str) and not PLACEHOLDER.fullmatch(config):
        configs.find(config)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != WRITTEN_BY_ITSELF], ids=name)
def test_commands_are_accepted(page):
    for line in commands_in(page):
        try:
            check(line)
        except Exception as error:  # the command line's own, of several kinds
            raise AssertionError(f"{name(page)}: {line!r}: {error}") from error


def test_there_are_commands():
    assert sum(len(commands_in(page)) for page in PAGES) > 60


@pytest.mark.parametrize(
    "line",
    [
        "purify bnech",
        "purify bench --sead 1",
        "purify bench fashion-mnist/none",
        "purify models fetsh NAME",
        "purify rivals --images no",
    ],
)
def test_a_wrong_command_is_seen(line):
    with pytest.raises(Exception, match="no command|no option|no configuration|valid integer"):
        check(line)
