"""What the configurations of all attacks have in common; the kinds are in `benchmarks.attack_kinds`."""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from torch import nn

import attacks
from attacks.cost import Cost
from benchmarks.config.sections import Section
from benchmarks.evaluation.evaluate import Attack, Randomness
from benchmarks.evaluation.targets import Target, is_target
from purify.gradients import GradientMode


def _fraction(value: object) -> object:
    """Accepts "8/255" where a number is expected."""
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = value.split("/")
        try:
            return float(numerator) / float(denominator)
        except (ValueError, ZeroDivisionError):
            return value
    return value


def _target(value: object) -> object:
    if value is not None and not is_target(value):
        raise ValueError("expected least_likely, random or a class from 0")
    return value


Fraction = Annotated[float, BeforeValidator(_fraction)]
Count = Annotated[int, Field(gt=0)]
Loss = Literal["ce", "margin", "dlr"]

ModelName = Literal["undefended", "defended"]

Through = Literal["deployed", "classifier", "surrogate"]
"""What an attack differentiates; the deployed model judges in any case."""


class ThreatConfig(Section):
    """`epsilon` for images in [0, 1], as a number or a fraction such as 8/255."""

    norm: Literal["Linf", "L2"]
    epsilon: Fraction = Field(gt=0)

    def build(self) -> attacks.Threat:
        return {"Linf": attacks.Linf, "L2": attacks.L2}[self.norm](self.epsilon)


class AttackConfig(Section):
    """What all attacks have.

    `gradient` lets the attack differentiate the purifier in another mode than the deployed one; with `randomness:
    fixed` it knows the defence's noise, see `benchmarks.evaluate`. `through: classifier` attacks the bare classifier
    instead (transfer), `through: surrogate` the defence with the purifier keys of `surrogate` in place of its own. With
    `target` (see `benchmarks.targets`) the attack seeks that class instead of any wrong one. An attack that names
    another model than the deployed one, or a gradient mode, is one on the defence alone.

    A kind adds its own settings, under the names that its class in the package `attacks` (`makes`) gives them.
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

    makes: ClassVar[type]
    # settings that the cost grows with in proportion, the one reported first
    lengths: ClassVar[tuple[str, ...]] = ("iterations",)
    white_box: ClassVar[bool] = True
    unit: ClassVar[str] = "steps"

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
        """What the attack is called in results: its name, by default its kind."""
        return self.name or self.kind

    @property
    def own(self) -> dict[str, Any]:
        """The kind's own settings."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in AttackConfig.model_fields}

    def on(self, model: ModelName) -> bool:
        """Whether that model is attacked."""
        needs_defence = self.gradient is not None or self.through != "deployed"
        return model in self.models and not (model == "undefended" and needs_defence)

    def build(self, defended: bool) -> Attack:
        """The attack, with one draw a gradient where the attacked model is deterministic.

        Raises:
            ValueError: settings that the attack refuses; a target for an attack without a targeted form.
        """
        threat = () if self.threat is None else (self.threat.build(),)
        try:
            attack = type(self).makes(*threat, **self._arguments(defended))
        except ValueError as error:
            raise ValueError(f"attack {self.label!r}: {error}") from error
        if self.target is not None and not attack.takes_targets:
            raise ValueError(f"attack {self.label!r}: {self.kind} has no targeted form; leave out `target`")
        return attack

    def _arguments(self, defended: bool) -> dict[str, Any]:
        own = self.own
        return own | {"eot": self._eot(defended)} if "eot" in own else own

    def _eot(self, defended: bool) -> int:
        random = defended and self.randomness == "fresh" and self.through != "classifier"
        return getattr(self, "eot", 1) if random else 1  # the draws of a deterministic model are all alike

    def check_model(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        """Raises ValueError where the attack cannot attack that model, or images of that shape (c, h, w)."""

    def facts(self, defended: bool) -> dict[str, Any]:
        """What a row of results says of the attack."""
        effort = {
            "iterations": getattr(self, self.lengths[0]),
            "unit": self.unit,
            "eot": self._eot(defended),
            "restarts": getattr(self, "restarts", 1),
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
        sizes = {name: getattr(self, name) for name in self.lengths}
        return self.model_copy(
            update={name: min(size, max(least.get(name, 1), math.ceil(share * size))) for name, size in sizes.items()}
        )

    def _least(self) -> dict[str, int]:
        """Below which one of `lengths` is not reduced, where that is not 1."""
        return {"queries": 10 * max(getattr(self, "eot", None) or 1, 8)}

    def evaluations(self, defended: bool) -> Cost:
        """About how many images go through the attacked model for one image that never leaves the attack."""
        own = self.own
        forward = (
            getattr(self, self.lengths[0])
            * self._eot(defended)
            * own.get("restarts", 1)
            * max(1, own.get("target_classes", 1))
        )
        return Cost(forward, forward if self.white_box else 0)
