"""The configuration of a purifier: `scheme` names a class of `purify.purifiers.PURIFIERS`, or a plug-in, whose
constructor gives the keys, their types, defaults and explanations.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from torch import nn

from benchmarks.config import derive
from benchmarks.config.files import DEFAULT_SCHEME, same_scheme
from benchmarks.config.sections import Section, naming, validate
from purify import Resized, ScoreModel, Sequential, plugins
from purify.gradients import GradientMode
from purify.purifiers import PURIFIERS, find

_GIVEN = ("score", "seed")  # by the experiment, not by this section


class PurifierConfig(derive.Derived):
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
        return self.own

    def build(self, score: ScoreModel, seed: int, gradient: GradientMode | None = None) -> nn.Module:
        """The purifier, in another gradient mode where one is given.

        Raises:
            ValueError: options that its constructor refuses; a `gradient` for a purifier that has no such mode.
            ConfigError: a plug-in that fails, or makes something else than a module.
        """
        if gradient is not None and "gradient" not in self.options:
            raise ValueError(f"gradient={gradient!r}: the purifier {self.scheme!r} has no gradient modes")
        make, arguments = type(self).makes, self.options if gradient is None else self.options | {"gradient": gradient}
        if "seed" in inspect.signature(make).parameters:
            arguments["seed"] = seed
        if type(self).of_plugin is None:
            purifier: Any = make(score, **arguments)
        else:
            with naming("purifier.scheme"):
                purifier = plugins.call(self.scheme, partial(make, score), nn.Module, "a purify.Purifier", **arguments)
        if self.rounds > 1:
            purifier = Sequential([purifier] * self.rounds, seed)
        return purifier if self.size is None else Resized(purifier, self.size)

    def updated(self, changes: dict[str, Any]) -> "AnyPurifierConfig":
        """This section with the keys of `changes`; those of another scheme replace it. Raises ConfigError."""
        base = self.model_dump(exclude_unset=True)
        base = base if same_scheme(base, changes) else {}
        return validate(_Holder, {"purifier": {**base, **changes}}).purifier


@cache  # one section as long as a plug-in's code is the same
def _section(name: str, makes: Callable[..., Any]) -> type[PurifierConfig]:
    # a plug-in has to be named; those that come with the package name themselves
    if name in PURIFIERS:
        return derive.section(name, ("scheme", name), PurifierConfig, makes, _GIVEN)
    found = derive.section(name, ("scheme", ...), PurifierConfig, makes, _GIVEN)
    found.of_plugin = staticmethod(of_plugin)
    return found


def of_plugin(name: str) -> type[PurifierConfig]:
    """The section of a plug-in. Raises PluginError for one that cannot be used."""
    return _section(name, find(name))


SECTIONS: dict[str, type[PurifierConfig]] = {name: _section(name, scheme) for name, scheme in PURIFIERS.items()}
# where pickle looks: configurations travel to other processes
globals().update({section.__name__: section for section in SECTIONS.values()})

if TYPE_CHECKING:
    AnyPurifierConfig = PurifierConfig
else:
    AnyPurifierConfig = derive.union("scheme", "purifiers", PurifierConfig, SECTIONS, of_plugin, DEFAULT_SCHEME)


class _Holder(Section):
    purifier: AnyPurifierConfig
