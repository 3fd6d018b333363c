"""Sections of configurations, and what is said of values that do not fit them."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from purify import plugins

Config = TypeVar("Config", bound="Section")

PLUGIN = plugins.FORM
"""Stands for the sections of plug-ins among those of one union, and in messages for their names."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, what came and what was expected."""


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Says of a plug-in that cannot be used which key names it."""
    try:
        yield
    except plugins.PluginError as error:
        raise ConfigError(f"{key}: {error}") from error


class Section(BaseModel):
    """Base of all configuration sections: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def validate(kind: type[Config], values: dict[str, Any]) -> Config:
    """`kind` from plain values. Raises ConfigError with one line for each problem."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(kind, problem) for problem in error.errors())) from None


def _explain(kind: type[BaseModel], problem: Any) -> str:
    location = _without_tags(kind, problem["loc"])
    name = ".".join(str(part) for part in location)
    if problem["type"] == "unknown_key":
        return f"unknown key {name!r}{problem['ctx']['hint']}"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name!r}{nearest(str(location[-1]), known_keys(kind, problem['loc'][:-1]))}"
    if problem["type"] == "union_tag_invalid":
        expected, tag = problem["ctx"]["expected_tags"], problem["ctx"]["tag"]
        return f"{name}.{_discriminator(problem)}: expected one of {expected}, got {tag!r}"
    if problem["type"] == "union_tag_not_found":
        return f"missing key {f'{name}.{_discriminator(problem)}'!r}"
    if problem["type"] == "missing":
        return f"missing key {name!r}"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], dict):  # about several keys: the message says which
        return f"{name}: {message}" if name else message
    return f"{name}: {message}, got {problem['input']!r}"


def _discriminator(problem: Any) -> str:
    """The key that chooses among several kinds of sections."""
    return str(problem["ctx"]["discriminator"]).strip("_'()")


def _without_tags(kind: Any, location: tuple[Any, ...]) -> tuple[Any, ...]:
    """The keys as a file has them: a section that is one of several kinds is followed by the name of its kind; in a
    list that name is kept, it helps.
    """
    parts: list[Any] = []
    for part in location:
        if part == PLUGIN:
            continue
        if parts and isinstance(part, str) and isinstance(parts[-1], str):
            known = known_keys(kind, tuple(parts))
            if known and part not in known and part != location[-1]:
                continue
        parts.append(part)
    return tuple(parts)


def known_keys(kind: Any, location: tuple[Any, ...]) -> list[str]:
    """The keys of the section that `location` leads to, looking through lists, and into the one of several kinds that
    `location` names.
    """
    sections = [kind]
    for part in location:
        fields = [s.model_fields[part].annotation for s in sections if part in s.model_fields]
        tagged = [
            s
            for s in sections
            if any(getattr(field.annotation, "__args__", ()) == (part,) for field in s.model_fields.values())
        ]
        sections = [s for annotation in fields for s in _sections_in(annotation)] or tagged or sections
    return [key for section in sections for key in section.model_fields]


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for argument in getattr(annotation, "__args__", ()) for s in _sections_in(argument)]


def nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (
        f"; did you mean {near[0]!r}?"
        if near
        else (f"; known here: {', '.join(known)}" if known and len(known) < 20 else "")
    )
