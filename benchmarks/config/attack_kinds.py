"""The configuration of each kind of attack: those within norm balls, and all of them together."""

from bisect import bisect_left
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from attacks.cost import Cost
from attacks.ensembles.autoattack import AutoAttack
from attacks.ensembles.eot_autoattack import EOTAutoAttack
from attacks.ensembles.strongest import Strongest
from attacks.expectation import takes_keys
from attacks.gradient.apgd import APGD
from attacks.gradient.deviated import DeviatedReconstruction
from attacks.gradient.fab import FAB
from attacks.gradient.hammer import DiffHammer
from attacks.gradient.pgd import PGD
from attacks.protocols import OffersStages, OffersTrajectory, check_offers, shows_states
from attacks.query.spsa import SPSA
from attacks.query.square import Square
from benchmarks.config.attack import AttackConfig, Count, Fraction, Loss, ModelName, ThreatConfig, Through
from benchmarks.config.perceptual_kinds import LowFrequencyConfig, PerceptualPGDConfig, ReColorConfig, StAdvConfig
from benchmarks.evaluation.beginnings import begins, check_begins
from benchmarks.evaluation.evaluate import Attack

_STRONGEST_EOT = 8  # where its configuration says nothing


class NormConfig(AttackConfig):
    """An attack within a norm ball."""

    threat: ThreatConfig

    def _check_begins(self, attack: Attack, model: nn.Module) -> None:
        try:
            check_begins(attack, self.randomness == "fresh" and takes_keys(model))
        except ValueError as error:
            raise ValueError(f"attack {self.label!r}: {error}") from error


class IterativeConfig(NormConfig):
    """A norm-bounded attack by iterations."""

    iterations: Count = 100
    eot: Count = 1
    restarts: Count = 1
    stop_draws: int = Field(0, ge=0)
    batch_size: Count = 256


class PGDConfig(NormConfig):
    """See `attacks.PGD`."""

    makes: ClassVar[type] = PGD
    lengths: ClassVar[tuple[str, ...]] = ("steps",)
    kind: Literal["pgd"]
    steps: Count = 20
    eot: Count = 1
    step_size: Fraction | None = Field(None, gt=0)
    loss: Loss = "ce"
    restarts: Count = 1
    random_start: bool = True
    batch_size: Count = 256
    momentum: float = Field(0.0, ge=0, lt=1)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    stop_draws: int = Field(0, ge=0)


class APGDConfig(IterativeConfig):
    """See `attacks.gradient.apgd.APGD`; `target_classes: 9` is APGD-T."""

    makes: ClassVar[type] = APGD
    kind: Literal["apgd"]
    loss: Loss | None = None
    target_classes: int = Field(0, ge=0)


class FABConfig(IterativeConfig):
    """See `attacks.gradient.fab.FAB`."""

    makes: ClassVar[type] = FAB
    kind: Literal["fab"]
    target_classes: int = Field(9, ge=0)

    def evaluations(self, defended: bool) -> Cost:
        gradients = super().evaluations(defended).backward
        return Cost(2 * gradients, gradients)


class SquareConfig(NormConfig):
    """See `attacks.query.square.Square`: without gradients; every draw counts as a query."""

    makes: ClassVar[type] = Square
    lengths: ClassVar[tuple[str, ...]] = ("queries",)
    white_box: ClassVar[bool] = False
    unit: ClassVar[str] = "queries"
    kind: Literal["square"]
    queries: Count = 5000
    eot: Count = 1
    answers: Literal["logits", "labels"] = "logits"
    p: float = Field(0.8, gt=0, le=1)
    restarts: Count = 1
    stop_draws: int = Field(0, ge=0)
    batch_size: Count = 256

    def check_model(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        self._check_begins(self.build(takes_keys(model)), model)

    def evaluations(self, defended: bool) -> Cost:
        return Cost(self.queries * self.restarts, 0)


class SPSAConfig(IterativeConfig):
    """See `attacks.query.spsa.SPSA`: without gradients."""

    makes: ClassVar[type] = SPSA
    white_box: ClassVar[bool] = False
    kind: Literal["spsa"]
    samples: Count = 128
    estimator: Literal["spsa", "nes"] = "spsa"
    delta: float | None = Field(None, gt=0)
    step_size: Fraction | None = Field(None, gt=0)
    loss: Loss = "margin"

    def evaluations(self, defended: bool) -> Cost:
        return Cost(2 * self.samples * super().evaluations(defended).forward, 0)


class DeviatedConfig(IterativeConfig):
    """See `attacks.gradient.deviated.DeviatedReconstruction` (DiffAttack): looks at the purifier's states, so the bare
    classifier is not attacked.
    """

    makes: ClassVar[type] = DeviatedReconstruction
    kind: Literal["deviated"]
    eot: Count = 20
    loss: Loss = "ce"
    weight: float = Field(1.0, ge=0)
    points: int = Field(4, ge=2)
    estimates: float = Field(0.0, ge=0)
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


class HammerConfig(IterativeConfig):
    """See `attacks.gradient.hammer.DiffHammer`; with `gradients: grafted` it looks at purified images, so the bare
    classifier is not attacked.
    """

    makes: ClassVar[type] = DiffHammer
    kind: Literal["hammer"]
    iterations: Count = 50
    eot: Count = 10
    gradients: Literal["full", "grafted"] = "full"
    loss: Loss = "margin"
    sharpness: float = Field(1.0, gt=0)
    em_steps: Count = 5
    stepwise: float = Field(0.5, ge=0, le=1)

    @field_validator("gradients")
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


class StrongestConfig(NormConfig):
    """See `attacks.strongest`: `budget` evaluations an image, one that is differentiated counting as three."""

    makes: ClassVar[type] = Strongest
    lengths: ClassVar[tuple[str, ...]] = ("budget",)
    unit: ClassVar[str] = "evaluations"
    kind: Literal["strongest"]
    budget: Count
    eot: Count | None = None
    sequence: tuple[str, ...] = ()
    select_draws: Count = 8
    stop_draws: Count = 32
    batch_size: Count = 256

    def _eot(self, defended: bool) -> int:
        return super()._eot(defended) or _STRONGEST_EOT

    def check_model(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        if self.sequence != ("deviated",):  # whose cost shows on a model with states only
            self._check_begins(self.build(takes_keys(model)), model)

    def evaluations(self, defended: bool) -> Cost:
        return Cost(self.budget // 3, self.budget // 3)

    def _least(self) -> dict[str, int]:
        random = "defended" in self.models and self.randomness == "fresh" and self.through != "classifier"
        attack = self.build(random)
        return {
            "budget": (
                1
                + bisect_left(
                    range(1, self.budget), True, key=lambda budget: begins(replace(attack, budget=budget), random)
                )
            )
        }


class EOTAutoAttackConfig(NormConfig):
    """See `attacks.ensembles.eot_autoattack.EOTAutoAttack`."""

    makes: ClassVar[type] = EOTAutoAttack
    lengths: ClassVar[tuple[str, ...]] = ("iterations", "queries")
    kind: Literal["eot_autoattack"]
    iterations: Count = 100
    eot: Count = 20
    queries: Count = 5000
    attacks: tuple[str, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
    stop_draws: int = Field(32, ge=0)
    batch_size: Count = 256

    def check_model(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        if "square" in self.attacks:  # the one part that has a least length
            self._check_begins(replace(self.build(takes_keys(model)), attacks=("square",)), model)  # type: ignore[type-var]

    def evaluations(self, defended: bool) -> Cost:
        return _ensemble(self.attacks, self.iterations, self._eot(defended), self.queries)


class AutoAttackConfig(NormConfig):
    """See `attacks.AutoAttack`, the official code."""

    makes: ClassVar[type] = AutoAttack
    lengths: ClassVar[tuple[str, ...]] = ("iterations", "queries")
    kind: Literal["autoattack"]
    version: Literal["standard", "rand", "custom"] = "standard"
    attacks: tuple[str, ...] = ()
    iterations: Count = 100
    eot: Count = 1
    queries: Count = 5000
    batch_size: Count = 128
    draws: Literal["counted", "torch"] = "counted"

    @field_validator("draws")
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

    def reduced(self, share: float) -> "AutoAttackConfig":
        plain = self.model_copy(update={"version": "custom", "attacks": self._names(), "eot": self._eot(True)})
        return super(AutoAttackConfig, plain).reduced(share)

    def evaluations(self, defended: bool) -> Cost:
        return _ensemble(self._names(), self.iterations, self._eot(defended), self.queries)

    def _names(self) -> tuple[str, ...]:
        versions = {
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


AnyAttackConfig = Annotated[
    PGDConfig
    | APGDConfig
    | FABConfig
    | SquareConfig
    | SPSAConfig
    | DeviatedConfig
    | HammerConfig
    | StrongestConfig
    | EOTAutoAttackConfig
    | AutoAttackConfig
    | StAdvConfig
    | ReColorConfig
    | LowFrequencyConfig
    | PerceptualPGDConfig,
    Field(discriminator="kind"),
]
