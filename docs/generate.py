"""Writes the pages that follow from the code: `python docs/generate.py`.

`docs/reference/command-line.md` is what the commands say of themselves, and needs no torch;
`docs/reference/configuration.md` is what the sections of configurations accept.
"""

import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- written by docs/generate.py: change the code, then run it again -->"


def command_line() -> str:
    """The page of all commands: usage, help, arguments and options."""
    from benchmarks.cli.app import app

    root: Any = typer.main.get_command(app)
    lines = ["# Command line", "", NOTE, "", *_command("purify", root, _everywhere(root))]
    return "\n".join(lines).rstrip() + "\n"


def _everywhere(command: Any) -> set[str]:
    """The options that a command and all below it have: they are explained once."""
    shared = {option.opts[0] for option in command.params if option.param_type_name == "option"}
    for child in getattr(command, "commands", {}).values():
        shared &= _everywhere(child)
    return shared


def _command(name: str, command: Any, shared: set[str], explained: bool = False) -> Iterator[str]:
    """A command's section, then those of the commands below it; `shared` options only until they are `explained`."""
    children = getattr(command, "commands", {})
    hints = typing.get_type_hints(inspect.unwrap(command.callback)) if command.callback else {}
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    shown = [p for p in options if not (explained and p.opts[0] in shared)]
    yield from (f"## `{name}`", "")
    if command.help:
        yield from (_paragraphs(command.help), "")
    below = ["[COMMAND]" if getattr(command, "invoke_without_command", False) else "COMMAND"] if children else []
    usage = [name, *(["[OPTIONS]"] if options else []), *map(_usage, arguments), *below]
    yield from ("```text", " ".join(usage), "```", "")
    if arguments:
        rows = ([_name(p), _cell(p.help), _default(p)] for p in arguments)
        yield from _table(("argument", "what it is", "default"), rows)
    if shown:
        rows = ([f"`{_option(p, hints)}`", _cell(p.help), _default(p)] for p in shown)
        yield from _table(("option", "what it does", "default"), rows)
    if shared and not explained:
        yield from (f"Every command below takes {', '.join(f'`{each}`' for each in sorted(shared))} too.", "")
    for child in sorted(children):
        if not children[child].hidden:
            yield from _command(f"{name} {child}", children[child], shared, explained=True)


def _usage(argument: Any) -> str:
    text = _name(argument).strip("`") + ("..." if argument.nargs == -1 else "")
    return text if argument.required else f"[{text}]"


def _name(argument: Any) -> str:
    return f"`{argument.metavar or argument.name.upper()}`"


def _option(option: Any, hints: dict[str, Any]) -> str:
    names = ", ".join(option.opts) + "".join(f" / {name}" for name in option.secondary_opts)
    kind = hints.get(option.name, str)
    if kind is bool or option.is_flag:
        return names
    return f"{names} {option.metavar or _value(kind)}"


def _value(kind: Any) -> str:
    """What is written for a value of an annotation: INTEGER of `int | None`, say."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(each for each in typing.get_args(kind) if each is not type(None))
    if typing.get_origin(kind) is typing.Annotated:
        return _value(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (list, tuple):
        return _value(typing.get_args(kind)[0])
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value in (None, False, (), []) or callable(value) else f"`{value}`"


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |".replace("  ", " ")
    yield ""


def configuration() -> str:
    """The page of all sections: keys, values, defaults and what the section says of itself."""
    from benchmarks.config.bench import BenchConfig
    from benchmarks.config.certify import CertifyConfig
    from benchmarks.config.train import TrainConfig

    lines = ["# Configuration keys", "", NOTE, "", *_CONFIGURATION.splitlines(), ""]
    written: set[str] = set()
    for command, section in (("bench", BenchConfig), ("certify", CertifyConfig), ("train", TrainConfig)):
        lines += [f"## `purify {command}`", ""]
        schema = section.model_json_schema()
        lines += _section(schema)
        for name, part in schema.get("$defs", {}).items():
            if part.get("type") == "object" and (key := f"{name} {part}") not in written:
                written.add(key)
                lines += [f"### {_heading(name, part)}", "", *_section(part)]
    return "\n".join(lines).rstrip() + "\n"


_CONFIGURATION = """\
A configuration is a YAML file; `purify bench NAME` takes a packaged one by its name. `extends: FILE` names a parent,
relative to the file itself: its values are taken section by section, and a section that names another `scheme`
replaces the parent's. `--set a.b=VALUE` sets one value, `--set attacks.0.eot=4` one of a list. Unknown keys are
errors that name the nearest known one. A name alone stands for a section that has one: `classifier: fashion-mnist`.
Fractions may be written as such: `epsilon: 8/255`.

A sweep is a bench configuration with a section `sweep:` from dotted keys to lists of values, all combinations of
which are points; with `mode: zip` the lists are walked together. A comparison has a section `schemes:` from names to
changes of the purifier's section; with `unequal: true` they may need different numbers of network evaluations.
"""


def _heading(name: str, part: dict[str, Any]) -> str:
    """A section's name, with what chooses it where it is one of several kinds."""
    chosen = next(((key, p["const"]) for key, p in part.get("properties", {}).items() if "const" in p), None)
    return name if chosen is None else f"{name}: `{chosen[0]}: {chosen[1]}`"


def _section(part: dict[str, Any]) -> Iterator[str]:
    if part.get("description"):
        yield from (_paragraphs(part["description"]), "")
    required, rows = part.get("required", []), []
    for key, value in part.get("properties", {}).items():
        default = "required" if key in required else _plain(value["default"]) if "default" in value else ""
        rows.append([f"`{key}`", _cell(_kind(value)), _cell(default), _cell(value.get("description"))])
    if any(row[3] for row in rows):
        yield from _table(("key", "value", "default", "what it is"), rows)
    else:
        yield from _table(("key", "value", "default"), (row[:3] for row in rows))


def _plain(value: Any) -> str:
    return "" if value is None else f"`{value if isinstance(value, str) and value else json.dumps(value)}`"


def _kind(value: dict[str, Any]) -> str:
    """A JSON schema of one value, in words."""
    several = value.get("anyOf") or value.get("oneOf")
    if several:
        return " or ".join(dict.fromkeys(_kind(each) for each in several if each != {"type": "null"}))
    if "$ref" in value:
        return value["$ref"].rsplit("/", 1)[-1]
    if "const" in value or "enum" in value:
        return " or ".join(f"`{each}`" for each in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return _array(value)
    words = {
        "integer": "integer",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "object": "mapping",
    }
    return words.get(value.get("type", ""), value.get("type") or "anything") + _bounds(value)


def _array(value: dict[str, Any]) -> str:
    if "prefixItems" in value:
        return f"list of {len(value['prefixItems'])}: {', '.join(_kind(each) for each in value['prefixItems'])}"
    return f"list of {_kind(value.get('items', {}))}"


_BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}


def _bounds(value: dict[str, Any]) -> str:
    return "".join(f", {word} {value[key]:g}" for key, word in _BOUNDS.items() if key in value)


PAGES: dict[str, Callable[[], str]] = {"command-line.md": command_line, "configuration.md": configuration}


def main() -> None:
    """Writes the pages that are named, or all."""
    for name in sys.argv[1:] or PAGES:
        (REFERENCE / name).write_text(PAGES[name]())


if __name__ == "__main__":
    main()
