"""The configuration of a purifier: `scheme` names a class of `purify.purifiers.PURIFIERS`, whose constructor gives the
keys, their types and defaults.
"""

import inspect
import types
import typing
from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, Tag, create_model
from torch import nn

from benchmarks.config.files import DEFAULT_SCHEME, same_scheme
from benchmarks.config.sections import Section, validate
from purify import Resized, ScoreModel, Sequential
from purify.gradients import GradientMode
from purify.purifiers import PURIFIERS

_PLAIN = (bool, int, float, str, type(None))
_GIVEN = ("self", "score", "seed")  # by the experiment, not by this section


class PurifierConfig(Section):
    """What all schemes have; the rest is the constructor's, which checks the values.

    `rounds`: purify so many times in a row (`purify.Sequential`). `size`: the purifier runs at that height and width
    (`purify.Resized`). `copies`: the defence averages what the classifier says of so many purified copies, its logits
    or its probabilities (`purify.DefendedClassifier`).
    """

    scheme: str
    rounds: int = Field(1, gt=0)
    size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    copies: int = Field(1, gt=0)
    average: Literal["logits", "probabilities"] = "logits"

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            name: getattr(self, name) for name in type(self).model_fields if name not in PurifierConfig.model_fields
        }

    def build(self, score: ScoreModel, seed: int, gradient: GradientMode | None = None) -> nn.Module:
        """The purifier, in another gradient mode where one is given. Raises ValueError for options that its constructor
        refuses.
        """
        options = self.options if gradient is None else self.options | {"gradient": gradient}
        purifier: nn.Module = PURIFIERS[self.scheme](score, **options, seed=seed)
        if self.rounds > 1:
            purifier = Sequential([purifier] * self.rounds, seed)
        return purifier if self.size is None else Resized(purifier, self.size)

    def updated(self, changes: dict[str, Any]) -> "AnyPurifierConfig":
        """This section with the keys of `changes`; those of another scheme replace it. Raises ConfigError."""
        base = self.model_dump(exclude_unset=True)
        base = base if same_scheme(base, changes) else {}
        return validate(_Holder, {"purifier": {**base, **changes}}).purifier


def _section(name: str, scheme: type) -> type[PurifierConfig]:
    """A section with the keys of a purifier's constructor."""
    hints = typing.get_type_hints(scheme.__init__)
    parameters = [p for p in inspect.signature(scheme).parameters.values() if p.name not in _GIVEN]
    fields: dict[str, Any] = {
        p.name: (
            _plain(hints[p.name]),
            ... if p.default is inspect.Parameter.empty else Field(p.default, validate_default=False),
        )
        for p in parameters
    }
    tag = (Literal[name], name)  # type: ignore[valid-type]
    return create_model(
        f"{scheme.__name__}Config",
        __base__=PurifierConfig,
        __module__=__name__,
        __doc__=f"See `purify.{scheme.__name__}`.",
        scheme=tag,
        **fields,
    )


def _plain(annotation: Any) -> Any:
    """What of a type can stand in a YAML file."""
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        return reduce(or_, [_plain(each) for each in typing.get_args(annotation) if _is_plain(each)])
    return dict[str, Any] if origin is Mapping else annotation


def _is_plain(annotation: Any) -> bool:
    return annotation in _PLAIN or typing.get_origin(annotation) in (Literal, tuple, Mapping)


SECTIONS: dict[str, type[PurifierConfig]] = {name: _section(name, scheme) for name, scheme in PURIFIERS.items()}
# where pickle looks: configurations travel to other processes
globals().update({section.__name__: section for section in SECTIONS.values()})


def _scheme(value: Any) -> str | None:
    return value.get("scheme", DEFAULT_SCHEME) if isinstance(value, dict) else getattr(value, "scheme", None)


AnyPurifierConfig = Annotated[
    Union[tuple(Annotated[section, Tag(name)] for name, section in SECTIONS.items())],  # type: ignore[valid-type]  # noqa: UP007
    Discriminator(_scheme),
]


class _Holder(Section):
    purifier: AnyPurifierConfig
