"""What a configuration adds to each kind of attack, and the sections of all, derived from the attacks' classes."""

import inspect
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import nn

import attacks
from attacks.cost import Cost
from attacks.expectation import takes_keys
from attacks.perceptual.feature_distance import FeatureDistance
from attacks.protocols import OffersStages, OffersTrajectory, check_offers, shows_states
from benchmarks.config import derive
from benchmarks.config.attack import AttackConfig, ModelName, ThreatConfig, Through
from benchmarks.config.perceptual_kinds import BoundConfig, LowFrequencyKind, PerceptualConfig, ReColorKind
from benchmarks.evaluation.beginnings import begins, check_begins
from benchmarks.evaluation.evaluate import Attack
from purify import plugins

_STRONGEST_EOT = 8  # where its configuration says nothing
_ITERATIVE = ("iterations", "eot", "restarts", "stop_draws", "batch_size")


class NormConfig(AttackConfig):
    """An attack within a norm ball."""

    threat: ThreatConfig
    stand_in: ClassVar[dict[str, Any]] = {"threat": attacks.Linf(0.5)}

    def _check_begins(self, attack: Attack, model: nn.Module) -> None:
        try:
            check_begins(attack, self.randomness == "fresh" and takes_keys(model))
        except ValueError as error:
            raise ValueError(f"attack {self.label!r}: {error}") from error


class IterativeConfig(NormConfig):
    """A norm-bounded attack by iterations."""

    first: ClassVar[tuple[str, ...]] = _ITERATIVE


class _PGD(NormConfig):
    first: ClassVar[tuple[str, ...]] = ("steps", "eot", "step_size", "loss", "restarts", "random_start", "batch_size")


class _FAB(IterativeConfig):
    def evaluations(self, defended: bool) -> Cost:
        gradients = super().evaluations(defended).backward
        return Cost(2 * gradients, gradients)


class _Square(NormConfig):
    def check_model(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        self._check_begins(self.build(takes_keys(model)), model)

    def evaluations(self, defended: bool) -> Cost:
        return Cost(self.queries * self.restarts, 0)


class _SPSA(IterativeConfig):
    def evaluations(self, defended: bool) -> Cost:
        return Cost(2 * self.samples * super().evaluations(defended).forward, 0)


class _Deviated(IterativeConfig):
    """Looks at the purifier's states, so the bare classifier is not attacked."""

    through: Through = Field("deployed", validate_default=True)

    @field_validator("through")
    @classmethod
    def _looks_inside(cls, value: Through, info: ValidationInfo) -> Through:
        if value == "classifier":
            raise ValueError("this attack looks inside a purifier, the bare classifier has none")
        if info.data.get("randomness") == "fixed":
            raise ValueError("randomness: fixed hides the purifier's states that this attack looks at")
        return value

    def on(self, model: ModelName) -> bool:
        return model == "defended" and super().on(model)

    def check_model(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        check_offers(model, f"attack {self.label!r}", OffersTrajectory)
        place = next(model.parameters()).device
        if not shows_states(
            model, torch.zeros(1, *shape, device=place), torch.zeros(1, dtype=torch.int64, device=place)
        ):
            raise ValueError(
                f"attack {self.label!r}: the purifier does not show its states with this `gradient`; set gradient:"
                " exact for this attack"
            )


class _Hammer(IterativeConfig):
    """With `gradients: grafted` it looks at purified images, so the bare classifier is not attacked."""

    @field_validator("gradients", check_fields=False)
    @classmethod
    def _grafts_between_stages(cls, value: str, info: ValidationInfo) -> str:
        if value == "grafted" and (info.data.get("through") == "classifier" or info.data.get("randomness") == "fixed"):
            raise ValueError(
                "grafted gradients need a purifier in sight: not with through: classifier or randomness: fixed"
            )
        return value

    def on(self, model: ModelName) -> bool:
        return super().on(model) and not (model == "undefended" and self.gradients == "grafted")

    def check_model(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        if self.gradients == "grafted":
            check_offers(model, f"attack {self.label!r}", OffersStages)

    def evaluations(self, defended: bool) -> Cost:
        forward = self.iterations * self._eot(defended) * self.restarts
        return Cost(forward, forward if self.gradients == "full" else self.iterations * self.restarts)


class _Strongest(NormConfig):
    def _eot(self, defended: bool) -> int:
        return super()._eot(defended) or _STRONGEST_EOT

    def check_model(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        if self.sequence != ("deviated",):  # whose cost shows on a model with states only
            self._check_begins(self.build(takes_keys(model)), model)

    def evaluations(self, defended: bool) -> Cost:
        return Cost(self.budget // 3, self.budget // 3)

    def _least(self) -> dict[str, int]:
        random = "defended" in self.models and self.randomness == "fresh" and self.through != "classifier"
        attack: Any = self.build(random)
        return {
            "budget": (
                1
                + bisect_left(
                    range(1, self.budget), True, key=lambda budget: begins(replace(attack, budget=budget), random)
                )
            )
        }


class _EOTAutoAttack(NormConfig):
    def check_model(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        if "square" in self.attacks:  # the one part that has a least length
            attack: Any = self.build(takes_keys(model))
            self._check_begins(replace(attack, attacks=("square",)), model)

    def evaluations(self, defended: bool) -> Cost:
        return _ensemble(self.attacks, self.iterations, self._eot(defended), self.queries)


class _AutoAttack(NormConfig):
    @field_validator("draws", check_fields=False)
    @classmethod
    def _known_noise_is_not_drawn(cls, value: str, info: ValidationInfo) -> str:
        if value == "torch" and info.data.get("randomness") == "fixed":
            raise ValueError("draws: torch draws the noise that randomness: fixed holds fixed; give one of them")
        return value

    def _arguments(self, defended: bool) -> dict[str, Any]:
        return self.own

    def _eot(self, defended: bool) -> int:
        return 20 if self.version == "rand" else self.eot

    def facts(self, defended: bool) -> dict[str, Any]:
        return super().facts(defended) | {
            "version": self.version,
            "attacks": self.attacks,
            "batch_size": self.batch_size,
            "draws_from": self.draws,
        }

    def reduced(self, share: float) -> Self:
        plain = self.model_copy(update={"version": "custom", "attacks": self._names(), "eot": self._eot(True)})
        return super(_AutoAttack, plain).reduced(share)

    def evaluations(self, defended: bool) -> Cost:
        return _ensemble(self._names(), self.iterations, self._eot(defended), self.queries)

    def _names(self) -> tuple[str, ...]:
        versions: dict[str, tuple[str, ...]] = {
            "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
            "rand": ("apgd-ce", "apgd-dlr"),
            "custom": self.attacks,
        }
        return versions[self.version]


def _ensemble(names: tuple[str, ...], iterations: int, eot: int, queries: int) -> Cost:
    """About the evaluations of AutoAttack's parts for an image that none of them breaks."""
    gradients = {
        name: iterations * eot * (9 if name in ("apgd-t", "fab-t") else 1) for name in names if name != "square"
    }
    without = sum(count for name, count in gradients.items() if name.startswith("fab")) + queries * ("square" in names)
    return Cost(sum(gradients.values()) + without, sum(gradients.values()))


_KINDS: dict[str, tuple[type[AttackConfig], type[attacks.Attack]]] = {
    "pgd": (_PGD, attacks.PGD),
    "apgd": (IterativeConfig, attacks.APGD),
    "fab": (_FAB, attacks.FAB),
    "square": (_Square, attacks.Square),
    "spsa": (_SPSA, attacks.SPSA),
    "deviated": (_Deviated, attacks.DeviatedReconstruction),
    "hammer": (_Hammer, attacks.DiffHammer),
    "strongest": (_Strongest, attacks.Strongest),
    "eot_autoattack": (_EOTAutoAttack, attacks.EOTAutoAttack),
    "autoattack": (_AutoAttack, attacks.AutoAttack),
    "stadv": (BoundConfig, attacks.StAdv),
    "recolor": (ReColorKind, attacks.ReColorAdv),
    "low_frequency": (LowFrequencyKind, attacks.LowFrequency),
    "perceptual": (PerceptualConfig, attacks.PerceptualPGD),
}


def _section(name: str, base: type[AttackConfig], makes: Callable[..., Any]) -> type[AttackConfig]:
    return derive.section(name, ("kind", ...), base, makes, ("threat",), base.first)


@cache  # one section as long as the plug-in's code is the same
def _of_plugin(name: str, base: type[AttackConfig], makes: Callable[..., Any]) -> type[AttackConfig]:
    found = _section(name, base, makes)
    found.of_plugin = staticmethod(of_plugin)
    return found


def of_plugin(name: str) -> type[AttackConfig]:
    """The section of a plug-in: within a norm ball where its constructor takes a `threat`, within a distance in
    features where that is a `FeatureDistance`, else with a bound of its own.

    Raises:
        PluginError: one that cannot be used.
    """
    made = plugins.load("attacks", name, "a class or function that makes an attack from its settings")
    if "threat" not in inspect.signature(made).parameters:
        base: type[AttackConfig] = BoundConfig
    else:
        base = PerceptualConfig if derive.hints_of(made).get("threat") is FeatureDistance else NormConfig
    return _of_plugin(name, base, made)


SECTIONS: dict[str, type[AttackConfig]] = {kind: _section(kind, base, made) for kind, (base, made) in _KINDS.items()}
# where pickle looks: configurations travel to other processes
globals().update({section.__name__: section for section in SECTIONS.values()})

if TYPE_CHECKING:
    AnyAttackConfig = AttackConfig
    PGDConfig: Any
    APGDConfig: Any
    SquareConfig: Any
    EOTAutoAttackConfig: Any
else:
    AnyAttackConfig = derive.union("kind", "attacks", AttackConfig, SECTIONS, of_plugin)
