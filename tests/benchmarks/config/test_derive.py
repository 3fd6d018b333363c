"""Sections derived from constructors: nothing is left out, nothing said twice, and every mistake is said of its key."""

import inspect
import typing
from dataclasses import dataclass, make_dataclass
from typing import Annotated, Any

import pytest
from pydantic import Field

from attacks import Threat
from benchmarks import config
from benchmarks.config import derive
from benchmarks.config.attack import AttackConfig
from benchmarks.config.attack_kinds import SECTIONS as ATTACKS
from benchmarks.config.attack_kinds import NormConfig
from benchmarks.config.bench import BenchConfig
from benchmarks.config.perceptual_kinds import PerceptualConfig
from benchmarks.config.purifier import SECTIONS as PURIFIERS
from benchmarks.config.purifier import PurifierConfig
from benchmarks.config.sections import ConfigError
from purify.plugins import PluginError

NO_KEYS = {"threat", "report", "score", "seed"}
"""Parameters of constructors that a configuration gives in another way, or not at all."""

DERIVED = [*ATTACKS.items(), *PURIFIERS.items()]
BASE = {
    "data": {"name": "fashion-mnist-embedded", "images": 3},
    "classifier": "fashion-mnist",
    "score": "fashion-mnist",
    "purifier": {},
    "attacks": [],
}
NEEDED = {"strongest": {"budget": 500}}
KEYS = [
    (name, key)
    for name, section in DERIVED
    for key in section.model_fields
    if key not in ("kind", "scheme", "threat", "name", "models", "surrogate")
]


def values_of(name):
    """A configuration with that section, and where in it the section is; only what is required."""
    section = dict(DERIVED)[name]
    if issubclass(section, PurifierConfig):
        return BASE | {"purifier": {"scheme": name}}, "purifier"
    threat = {"norm": "Linf", "epsilon": 0.1} if issubclass(section, NormConfig) else None
    threat = {"features": "fashion-mnist", "epsilon": 0.5} if issubclass(section, PerceptualConfig) else threat
    given = {} if threat is None else {"threat": threat}
    return BASE | {"attacks": [{"kind": name, **given, **NEEDED.get(name, {})}]}, "attacks.0"


def problems(name, key, value):
    values, place = values_of(name)
    config.set_value(values, f"{place}.{key}", value)
    with pytest.raises(ConfigError) as raised:
        config.validate(BenchConfig, values)
    return str(raised.value).splitlines()


@pytest.mark.parametrize(("name", "section"), DERIVED)
def test_every_parameter_is_a_key_with_the_constructors_default_and_an_explanation(name, section):
    parameters = {
        key: parameter for key, parameter in inspect.signature(section.makes).parameters.items() if key not in NO_KEYS
    }
    assert set(section.own_keys()) == set(parameters)
    for key, parameter in parameters.items():
        field = section.model_fields[key]
        assert field.is_required() == (parameter.default is inspect.Parameter.empty)
        assert field.is_required() or field.default == parameter.default
        assert field.description and not field.description.startswith(" ")


@pytest.mark.parametrize(("name", "section"), DERIVED)
def test_defaults_are_accepted(name, section):
    values, _ = values_of(name)
    settings = config.validate(BenchConfig, values)
    found = settings.purifier if issubclass(section, PurifierConfig) else settings.attacks[0]
    assert type(found) is section


@pytest.mark.parametrize(("name", "section"), DERIVED)
def test_unknown_keys_are_named_with_the_nearest(name, section):
    for key in section.own_keys():
        (line,) = problems(name, key + "z", 1)
        assert line.startswith("unknown key ") and f".{key}z'" in line and "did you mean" in line


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_wrong_types_are_named(name, key):
    """A mapping is no value of any of these keys but a solver's, which it names."""
    (line, *more) = problems(name, key, {"a": {"b": []}})
    assert f".{key}" in line and all(f".{key}" in other for other in more)


OUT_OF_RANGE: dict[str, Any] = {
    "stop_draws": -1,
    "target_classes": -1,
    "weight": -1.0,
    "estimates": -1.0,
    "smoothness": -1.0,
    "points": 1,
    "momentum": 1.0,
    "p": 1.5,
    "stepwise": 1.5,
    "kernels": [[2, 2]],
    "resolution": [1, 32, 32],
    "attacks": ["fgsm"],
    "sequence": ["fgsm"],
    "loss": "l2",
    "random_start": "perhaps",
}
"""By key, where it is not 0 or an unknown word."""


@pytest.mark.parametrize(
    ("name", "key"),
    [(name, key) for name, key in KEYS if name in ATTACKS and key not in AttackConfig.model_fields],
)
def test_values_out_of_range_are_named(name, key):
    annotation = dict(DERIVED)[name].model_fields[key].annotation
    chosen = typing.get_origin(annotation) is typing.Literal
    value = OUT_OF_RANGE.get(key, "none of them" if chosen else 0)
    if (name, key) == ("strongest", "stop_draws"):
        value = 0
    if name == "autoattack" and key in ("attacks", "iterations", "eot", "queries"):
        # what goes together with `version` is said of them together
        (line,) = problems(name, key, value)
        assert key in line and "version='standard'" in line
        return
    (line,) = problems(name, key, value)
    place = f"attacks.0.{name}.{key}"
    assert line.startswith(f"{place}: ") and repr(value)[1:-1].split(",")[0].strip("'[(") in line
    assert any(word in line for word in ("must ", "expected one of", "is not one of", "should be"))


@pytest.mark.parametrize(("name", "section"), DERIVED)
def test_fractions_wherever_numbers_are_meant(name, section):
    """12/16 is 0.75 for each of these keys."""
    for key in section.own_keys():
        annotation = section.model_fields[key].annotation
        if float in (annotation, *typing.get_args(annotation)):
            values, place = values_of(name)
            config.set_value(values, f"{place}.{key}", "12/16")
            settings = config.validate(BenchConfig, values)
            found = settings.purifier if place == "purifier" else settings.attacks[0]
            assert found.own[key] == 0.75, key


def test_all_problems_at_once():
    values, _ = values_of("pgd")
    values["attacks"][0] |= {"steps": 0, "momentum": 2, "momentun": 1}
    with pytest.raises(ConfigError) as raised:
        config.validate(BenchConfig, values)
    assert sorted(str(raised.value).splitlines()) == [
        "attacks.0.pgd.momentum: must lie in [0, 1), got 2",
        "attacks.0.pgd.steps: must be a positive integer, got 0",
        "unknown key 'attacks.0.pgd.momentun'; did you mean 'momentum'?",
    ]


@pytest.mark.parametrize(("key", "value"), [("attacks.0.kind", [1]), ("purifier.scheme", {}), ("attacks.0.kind", 3)])
def test_names_that_are_none(key, value):
    values, _ = values_of("pgd")
    values["purifier"] = {"steps": 3}
    config.set_value(values, key, value)
    with pytest.raises(ConfigError, match=f"{key}: expected one of .*module:FILE.py:NAME', got"):
        config.validate(BenchConfig, values)
    with pytest.raises(ConfigError, match="purifier.solver: "):
        config.validate(BenchConfig, BASE | {"purifier": {"solver": {"name": value}}})


def test_a_section_without_its_kind():
    with pytest.raises(ConfigError, match=r"missing key 'attacks\.0\.kind'"):
        config.validate(BenchConfig, BASE | {"attacks": [{"steps": 3}]})


@dataclass
class Example:
    """One line.

    Args:
        threat: not a key.
        one, two: of two
            lines: with a colon.
        three: of one.

    Raises:
        ValueError: nothing of this.
    """

    threat: Threat
    one: Annotated[int, Field(gt=3)]
    two: float | None = None
    three: tuple[float, ...] | str = ()


def test_docstrings():
    assert derive.descriptions(Example) == {
        "threat": "not a key.",
        "one": "of two lines: with a colon.",
        "two": "of two lines: with a colon.",
        "three": "of one.",
    }


def test_bounds_in_a_type_are_checked_too():
    section = derive.section("example", ("kind", ...), AttackConfig, Example, ("threat",), first=("three",))
    assert section.own_keys() == ["three", "one", "two"]
    with pytest.raises(ConfigError, match="one: Input should be greater than 3, got 3"):
        config.validate(section, {"kind": "example", "one": 3})


@pytest.mark.parametrize("name", ["target", "label", "copy"])
def test_names_that_sections_have_themselves(name):
    made = make_dataclass("Example", [(name, int, 0)])
    with pytest.raises(PluginError, match=f"its parameter '{name}' has the name of something that every kind has"):
        derive.section("example", ("kind", ...), AttackConfig, made, ())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("size must be a positive number, got -1", "must be a positive number"),
        ("size=-1 is not one of 1, 2", "expected one of 1, 2"),
        ("size: -1 is not one of 1, 2", "-1 is not one of 1, 2"),
        ("sizes must be positive, got -1", None),
        ("size goes with shape", None),
    ],
)
def test_what_constructors_say_of_one_argument(error, said):
    def make(size):
        raise ValueError(error)

    assert derive.refusal(make, {"size": -1}, "size") == said
