"""What the configurations of all attacks have in common; the kinds are in `benchmarks.config.attack_kinds`."""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from torch import nn

import attacks
from attacks.cost import Cost
from benchmarks.config import derive
from benchmarks.config.derive import Fraction
from benchmarks.config.sections import Section
from benchmarks.evaluation.evaluate import Attack, Randomness
from benchmarks.evaluation.targets import Target, is_target
from purify import plugins
from purify.gradients import GradientMode


def _target(value: object) -> object:
    if value is not None and not is_target(value):
        raise ValueError("expected least_likely, random or a class from 0")
    return value


ModelName = Literal["undefended", "defended"]

Through = Literal["deployed", "classifier", "surrogate"]
"""What an attack differentiates; the deployed model judges in any case."""


class ThreatConfig(Section):
    """`epsilon` for images in [0, 1], as a number or a fraction such as 8/255."""

    norm: Literal["Linf", "L2"]
    epsilon: Fraction = Field(gt=0)

    def build(self) -> attacks.Threat:
        return {"Linf": attacks.Linf, "L2": attacks.L2}[self.norm](self.epsilon)


class AttackConfig(derive.Derived):
    """What all attacks have.

    `gradient` lets the attack differentiate the purifier in another mode than the deployed one; with `randomness:
    fixed` it knows the defence's noise, see `benchmarks.evaluate`. `through: classifier` attacks the bare classifier
    instead (transfer), `through: surrogate` the defence with the purifier keys of `surrogate` in place of its own. With
    `target` (see `benchmarks.targets`) the attack seeks that class instead of any wrong one. An attack that names
    another model than the deployed one, or a gradient mode, is one on the defence alone.

    A kind adds the settings of its class in the package `attacks` (`makes`), which checks them. What an attack can do
    is read from that class, see `attacks.Attack`.

    Attributes:
        first: keys of a kind that stand first; see `derive.section`.
        stand_in: what the class takes that is no key, as good as any to try settings with.
    """

    kind: str
    name: str = ""
    threat: ThreatConfig | None = None
    gradient: GradientMode | None = None
    randomness: Randomness = "fresh"
    models: tuple[ModelName, ...] = ("undefended", "defended")
    through: Through = "deployed"
    surrogate: dict[str, Any] = Field({}, validate_default=True)
    target: Annotated[Target | None, BeforeValidator(_target)] = None

    first: ClassVar[tuple[str, ...]] = ()
    stand_in: ClassVar[dict[str, Any]] = {}

    @field_validator("*")
    @classmethod
    def _is_accepted(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name
        needed = [key for key in cls.own_keys() if cls.model_fields[key].is_required()]
        given = {key: info.data[key] for key in needed if key in info.data}
        if name in cls.own_keys() and given.keys() | {name} >= set(needed):
            said = derive.refusal(cls.makes, {**cls.stand_in, **given, name: value}, str(name))
            if said is not None:
                raise ValueError(said)
        return value

    @field_validator("through")
    @classmethod
    def _mode_has_a_purifier(cls, value: Through, info: ValidationInfo) -> Through:
        if value == "classifier" and info.data.get("gradient") is not None:
            raise ValueError("the bare classifier has no purifier for `gradient` to act on; give one of them")
        return value

    @field_validator("surrogate")
    @classmethod
    def _goes_with_a_surrogate(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        asked = info.data.get("through") == "surrogate"
        if asked and not value:
            raise ValueError("`through: surrogate` needs the purifier keys that differ, for instance {steps: 5}")
        if value and not asked:
            raise ValueError("goes with `through: surrogate` and only with it")
        return value

    @property
    def label(self) -> str:
        """What the attack is called in results: its name, by default its kind, of a plug-in what stands last in it."""
        return self.name or self.kind.rpartition(":")[2]

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        try:
            self._make(**self.stand_in, **self.own)
        except ValueError as error:
            raise ValueError(f"attack {self.label!r}: {error}") from error
        if self.target is not None and not self.can("takes_targets"):
            raise ValueError(f"attack {self.label!r}: {self.kind} has no targeted form; leave out `target`")
        return self

    def can(self, trait: str) -> Any:
        """An attribute of the attack's class, see `attacks.Attack`; of a function, of the class that it says it
        returns.
        """
        made: Any = type(self).makes
        made = made if isinstance(made, type) else derive.hints_of(made).get("return")
        default = getattr(attacks.Attack, trait)
        if trait in ("takes_targets", "takes_start") and not (
            isinstance(made, type) and issubclass(made, attacks.Attack)
        ):
            default = False  # a callable of the user's own takes what `evaluate` always gives
        return getattr(made, trait, default)

    @property
    def lengths(self) -> tuple[str, ...]:
        """Settings that the cost grows with in proportion, the one reported first."""
        own = self.own_keys()
        declared = tuple(name for name in self.can("lengths") if name in own)
        return declared or tuple(name for name in ("steps", "queries", "budget") if name in own)[:1]

    @property
    def unit(self) -> str:
        """Of the first of `lengths`."""
        return str(self.can("unit"))

    @property
    def white_box(self) -> bool:
        """Whether gradients are taken."""
        return not self.can("query_only")

    @property
    def _length(self) -> int | None:
        """What results report as iterations; None of a plug-in that has no such setting."""
        return int(self.own[self.lengths[0]]) if self.lengths else None

    def on(self, model: ModelName) -> bool:
        """Whether that model is attacked."""
        needs_defence = self.gradient is not None or self.through != "deployed"
        return model in self.models and not (model == "undefended" and needs_defence)

    def build(self, defended: bool) -> Attack:
        """The attack, with one draw a gradient where the attacked model is deterministic.

        Raises:
            ValueError: settings that the attack refuses.
            PluginError: a plug-in that makes something else than an attack.
        """
        threat = {} if self.threat is None else {"threat": self.threat.build()}
        try:
            return self._make(**threat, **self._arguments(defended))
        except ValueError as error:
            raise ValueError(f"attack {self.label!r}: {error}") from error

    def _make(self, **arguments: Any) -> Attack:
        makes = type(self).makes
        made = (
            makes(**arguments)
            if type(self).of_plugin is None
            else plugins.call(self.kind, makes, object, "", **arguments)
        )
        if not callable(made) or not hasattr(made, "threat"):
            missing = "a threat" if callable(made) else "a call (model, x, y, keys, progress)"
            raise plugins.PluginError(
                f"{self.kind} made a {type(made).__name__} without {missing}, expected an attack, see attacks.Attack"
            )
        attack: Attack = made
        return attack

    def _arguments(self, defended: bool) -> dict[str, Any]:
        own = self.own
        return own | {"eot": self._eot(defended)} if "eot" in own else own

    def _eot(self, defended: bool) -> int:
        random = defended and self.randomness == "fresh" and self.through != "classifier"
        return self.own.get("eot", 1) if random else 1  # the draws of a deterministic model are all alike

    def check_model(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        """Raises ValueError where the attack cannot attack that model, or images of that shape (c, h, w)."""

    def facts(self, defended: bool) -> dict[str, Any]:
        """What a row of results says of the attack."""
        effort = {
            "iterations": self._length,
            "unit": self.unit,
            "eot": self._eot(defended),
            "restarts": self.own.get("restarts", 1),
        }
        loss = {"loss": self.own["loss"]} if "loss" in self.own else {}
        return {
            **effort,
            **loss,
            "through": self.through,
            "surrogate": self.surrogate or None,
            "target": self.target,
            "settings": self.own,
        }

    def reduced(self, share: float) -> Self:
        """The same attack with this share of its iterations or queries, of each as many as it needs at least."""
        least = self._least()
        sizes = {name: self.own[name] for name in self.lengths}
        return self.model_copy(
            update={name: min(size, max(least.get(name, 1), math.ceil(share * size))) for name, size in sizes.items()}
        )

    def _least(self) -> dict[str, int]:
        """Below which one of `lengths` is not reduced, where that is not 1."""
        return {"queries": 10 * max(self.own.get("eot") or 1, 8)}

    def evaluations(self, defended: bool) -> Cost:
        """About how many images go through the attacked model for one image that never leaves the attack."""
        own = self.own
        forward = (
            (self._length or 1) * self._eot(defended) * own.get("restarts", 1) * max(1, own.get("target_classes", 1))
        )
        return Cost(forward, forward if self.white_box else 0)
