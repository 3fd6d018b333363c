"""Sections of configurations from constructors: a key for each parameter, of its type, with its default, and explained
by the `Args:` of its docstring. Values are checked by the constructor itself.

A type may carry bounds (`Annotated[int, Field(gt=0)]`), which are then checked first.
"""

import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationError,
    WrapValidator,
    create_model,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from benchmarks.config.sections import PLUGIN, Section, known_keys, nearest
from purify import plugins, solvers
from purify.solvers import SolverSettings

Kind = TypeVar("Kind", bound="Derived")

_PLAIN = (bool, int, float, str, type(None), Any)


def _fraction(value: object) -> object:
    """Accepts "8/255" where a number is expected."""
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = value.split("/")
        try:
            return float(numerator) / float(denominator)
        except (ValueError, ZeroDivisionError):
            return value
    return value


def _solver(value: Any) -> Any:
    solvers.make(value)
    return value


Fraction = Annotated[float, BeforeValidator(_fraction)]

_Solver = Annotated[str | dict[str, Any], AfterValidator(_solver)]


class Derived(Section):
    """Base of the sections made here.

    Attributes:
        makes: the class or function whose keys a section has.
        of_plugin: of a plug-in's section: makes it again from the plug-in's name, where its class is not found by name,
            in another process.
    """

    makes: ClassVar[Callable[..., Any]]
    of_plugin: ClassVar[Callable[[str], type[Section]] | None] = None

    if typing.TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A key of the constructor's."""

    @model_validator(mode="before")
    @classmethod
    def _under_its_own_name(cls, values: Any) -> Any:
        """Takes keys under the other names that the constructor knows (`other_names`, see `attacks.Attack`)."""
        other = getattr(getattr(cls, "makes", None), "other_names", {})
        given = [name for name in other if isinstance(values, dict) and name in values]
        for name in given:
            if other[name] in values:
                raise ValueError(f"{name} is another name of {other[name]}: give one of them")
        return {other.get(name, name): of for name, of in values.items()} if given else values

    @classmethod
    def own_keys(cls) -> list[str]:
        """The keys that are the constructor's."""
        common = next(base for base in reversed(cls.__mro__) if issubclass(base, Derived) and base.model_fields)
        return [name for name in cls.model_fields if name not in common.model_fields]

    @property
    def own(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in self.own_keys()}

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self).of_plugin is None:
            return super().__reduce_ex__(protocol)
        return _again, (type(self).of_plugin, self.model_dump(exclude_unset=True))


def _again(of_plugin: Callable[[str], type[Section]], values: dict[str, Any]) -> Section:
    return of_plugin(values.get("kind") or values["scheme"]).model_validate(values)


def section(
    name: str,
    tag: tuple[Any, Any],
    base: type[Kind],
    made: Callable[..., Any],
    given: Collection[str],
    first: Sequence[str] = (),
) -> type[Kind]:
    """A section with the keys of a constructor.

    Args:
        name: asks for this section.
        tag: the key that holds the name, and its default, ... for none.
        base: has the keys that are not the constructor's, that one among them.
        made: a class, or a function that makes something.
        given: parameters of `made` that are not keys.
        first: keys that come first, in this order; the others follow in the constructor's. The order is part of a run's
            identity.

    Raises:
        PluginError: a parameter without a default that no value in a file could be given for, or one of a name that
            `base` needs itself.
    """
    fields = keys_of(name, made, given)
    for key in fields:
        if key in base.model_fields or hasattr(base, key):
            raise plugins.PluginError(
                f"{name}: its parameter {key!r} has the name of something that every kind has; call it something else"
            )
    order = [key for key in first if key in fields] + [key for key in fields if key not in first]
    title = getattr(made, "__name__", name)
    arguments: dict[str, Any] = {tag[0]: (Literal[name], tag[1])}
    arguments |= {field: fields[field] for field in order}
    found = create_model(
        f"{title}Config", __base__=base, __module__=base.__module__, __doc__=f"See `{title}`.", **arguments
    )
    found.makes = staticmethod(made)
    return found


def keys_of(name: str, made: Callable[..., Any], given: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
    """The parameters of `made` that can stand in a file: name -> type and pydantic's field. See `section`."""
    hints, help_texts = hints_of(made), descriptions(made)
    fields: dict[str, tuple[Any, Any]] = {}
    for parameter in inspect.signature(made).parameters.values():
        if parameter.name in given or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is inspect.Parameter.empty
        annotation = _plain(hints.get(parameter.name, Any))
        if annotation in (None, type(None)):
            if required:
                raise plugins.PluginError(
                    f"{name}: its parameter {parameter.name!r} can be given by no value of a configuration; give it a"
                    " default"
                )
            continue
        text = help_texts.get(parameter.name)
        default = ... if required else parameter.default
        fields[parameter.name] = (annotation, Field(default, validate_default=False, description=text))
    return fields


def hints_of(made: Callable[..., Any]) -> dict[str, Any]:
    """The types of the parameters of `made`, and of what a function returns."""
    function: Any = getattr(made, "__init__") if isinstance(made, type) else made  # noqa: B009 (mypy: unsound)
    return typing.get_type_hints(function, include_extras=True)


def descriptions(made: Callable[..., Any]) -> dict[str, str]:
    """What the docstring's `Args:` says of each parameter."""
    lines = (inspect.getdoc(made) or "").partition("\nArgs:\n")[2].splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        if line and not line.startswith(" "):
            break  # the next part of the docstring
        begins = re.match(r" {4}(\w+(?:, \w+)*): *(.*)", line)
        if begins:
            names = begins[1].split(", ")
            found |= dict.fromkeys(names, begins[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def refusal(made: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> str | None:
    """What the constructor has against `arguments[name]`, as said of a key; None for what it says of several arguments
    together.
    """
    try:
        made(**arguments)
    except Exception as error:  # of what is no ValueError nothing is known; it comes again with all arguments
        about = re.match(rf"{name}(=.* is not one of |: | (?=must ))(.*?)(, got .*)?$", str(error), re.DOTALL)
        if about:
            return f"expected one of {about[2]}" if about[1].startswith("=") else about[2]
    return None


def union(
    key: str,
    kind: plugins.Kind,
    base: type[Section],
    sections: Mapping[str, type[Section]],
    of_plugin: Callable[[str], type[Section]],
    default: str | None = None,
) -> Any:
    """The type of a field that holds one of several sections, by the value of `key`.

    Args:
        key: "kind" or "scheme".
        kind: of the plug-ins that may be named instead.
        base: of all sections.
        sections: by the values of `key`.
        of_plugin: the section of a plug-in, by its name.
        default: the value where none is given.
    """

    def chosen(value: Any) -> str | None:
        name = value.get(key, default) if isinstance(value, dict) else getattr(value, key, None)
        name = None if name is None else str(name)
        return PLUGIN if name not in sections and plugins.is_plugin(kind, name) else name

    def made_by_plugin(value: Any, _: Any) -> Section:
        return value if isinstance(value, Section) else _validated(key, of_plugin, value)

    chosen.__name__ = key  # as messages name it
    plugin = Annotated[SerializeAsAny[base], WrapValidator(made_by_plugin), Tag(PLUGIN)]  # type: ignore[valid-type]
    tagged: Iterable[Any] = (Annotated[each, Tag(name)] for name, each in sections.items())
    return Annotated[Union[(*tagged, plugin)], Discriminator(chosen)]


def _validated(key: str, of_plugin: Callable[[str], type[Section]], value: dict[str, Any]) -> Section:
    """A plug-in's section. What is said of its keys is said as of all others."""
    try:
        kind = of_plugin(value[key])
    except plugins.PluginError as error:
        details = InitErrorDetails(
            type=PydanticCustomError("plugin", "{message}", {"message": str(error)}), loc=(key,), input=value[key]
        )
        raise ValidationError.from_exception_data(key, [details]) from None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ValidationError.from_exception_data(
            error.title, [_detail(kind, each) for each in error.errors()]
        ) from None


def _detail(kind: type[Section], problem: Any) -> InitErrorDetails:
    unknown = problem["type"] == "extra_forbidden"
    hint = nearest(str(problem["loc"][-1]), known_keys(kind, problem["loc"][:-1])) if unknown else ""
    named = PydanticCustomError("unknown_key", "{hint}", {"hint": hint}) if unknown else problem["type"]
    return InitErrorDetails(type=named, loc=problem["loc"], input=problem["input"], ctx=problem.get("ctx", {}))


def _plain(annotation: Any) -> Any:
    """What of a type can stand in a YAML file; None for nothing."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        inner = _plain(arguments[0])
        return None if inner is None else Annotated[(inner, *arguments[1:])]
    if origin in (Union, types.UnionType):
        if SolverSettings in arguments:
            return _Solver
        parts = [plain for plain in map(_plain, arguments) if plain is not None]
        return reduce(or_, parts) if parts else None
    if origin is Sequence:
        return types.GenericAlias(tuple, (_plain(arguments[0]), ...))
    if origin in (tuple, list):
        return origin[tuple(part if part is ... else _plain(part) for part in arguments)]
    if origin is Mapping or annotation in (dict, Mapping) or origin is dict:
        return dict[str, Any]
    if annotation is float:
        return Fraction
    return annotation if origin is Literal or annotation in _PLAIN else None
