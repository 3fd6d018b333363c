"""The configuration of `purify bench`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from torch import nn

import attacks
from benchmarks.classifiers import load_classifier
from benchmarks.config import Section
from benchmarks.evaluate import Attack, Randomness
from purify import ScoreModel, load_score_model
from purify.gradients import GradientMode
from purify.score import LabelRounding
from purify.sde import Grid


def _fraction(value: object) -> object:
    """Accepts "8/255" where a number is expected."""
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = value.split("/")
        try:
            return float(numerator) / float(denominator)
        except (ValueError, ZeroDivisionError):
            return value
    return value


def _named(value: object) -> object:
    """Accepts a bare name where a section with a name is expected."""
    return {"name": value} if isinstance(value, str) else value


class DataConfig(Section):
    """Images `first` .. `first + images - 1` of a data set, in its own order or, with `subset_seed`, shuffled as DiffPure's subsets are."""

    name: str
    images: int = Field(gt=0)
    first: int = Field(0, ge=0)
    root: str | None = None
    subset_seed: int | None = Field(None, ge=0)


class ClassifierConfig(Section):
    """See `benchmarks.load_classifier`."""

    name: str
    dataset: str | None = None
    threat: str | None = None
    weights: str | None = None

    def load(self) -> nn.Module:
        return load_classifier(self.name, self.dataset, self.threat, self.weights)


class ScoreConfig(Section):
    """See `purify.load_score_model`, and `purify.ScoreModel` for `label_rounding`; `class_label` is for class-conditional networks."""

    name: str
    architecture: str | None = None
    config: dict[str, Any] | str | None = None
    class_label: int | None = None
    label_rounding: LabelRounding | None = None

    def load(self) -> ScoreModel:
        """Not checked for plausibility: that takes images."""
        model = load_score_model(self.name, self.architecture, self.config, check=False)
        model = model if self.class_label is None else model.with_class(self.class_label)
        model.label_rounding = self.label_rounding or model.label_rounding
        return model


class PurifierConfig(Section):
    """See `purify.DiffPure`, which checks the values; with `size`, the purifier runs at that height and width, see `purify.Resized`."""

    scheme: Literal["diffpure"] = "diffpure"
    t_star: float
    steps: int
    gradient: GradientMode = "exact"
    solver: str = "torchsde"
    method: str = "euler"
    eta: float = 1.0
    t_end: float = 1e-5
    grid: Grid = "uniform"
    time: Literal["own", "vp"] = "own"
    noising: Literal["continuous", "discrete"] = "continuous"
    size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None


class ThreatConfig(Section):
    """`epsilon` for images in [0, 1], as a number or a fraction such as 8/255."""

    norm: Literal["Linf", "L2"]
    epsilon: Annotated[float, BeforeValidator(_fraction)] = Field(gt=0)

    def build(self) -> attacks.Threat:
        return {"Linf": attacks.Linf, "L2": attacks.L2}[self.norm](self.epsilon)


class AttackConfig(Section):
    """What all attacks have.

    `gradient` lets the attack differentiate the purifier in another mode than the deployed one; with `randomness: fixed` it knows the defence's noise, see
    `benchmarks.evaluate`.
    """

    kind: str
    name: str = ""
    threat: ThreatConfig
    gradient: GradientMode | None = None
    randomness: Randomness = "fresh"
    models: tuple[Literal["undefended", "defended"], ...] = ("undefended", "defended")

    @property
    def label(self) -> str:
        """What the attack is called in results: its name, by default its kind."""
        return self.name or self.kind


class PGDConfig(AttackConfig):
    """See `attacks.PGD`."""

    kind: Literal["pgd"]
    steps: int = Field(20, gt=0)
    eot: int = Field(1, gt=0)
    step_size: Annotated[float | None, BeforeValidator(_fraction)] = Field(None, gt=0)
    loss: Literal["ce", "margin"] = "ce"
    restarts: int = Field(1, gt=0)
    random_start: bool = True
    batch_size: int = Field(256, gt=0)

    def build(self, defended: bool) -> Attack:
        return attacks.PGD(
            self.threat.build(), self.steps, self._eot(defended), self.step_size, self.loss, self.restarts, self.random_start, batch_size=self.batch_size
        )

    def _eot(self, defended: bool) -> int:
        return self.eot if defended and self.randomness == "fresh" else 1  # the draws of a deterministic model are all alike

    def facts(self, defended: bool) -> dict[str, Any]:
        return {"iterations": self.steps, "eot": self._eot(defended), "restarts": self.restarts, "loss": self.loss}


class AutoAttackConfig(AttackConfig):
    """See `attacks.AutoAttack`."""

    kind: Literal["autoattack"]
    version: Literal["standard", "rand", "custom"] = "standard"
    attacks: tuple[str, ...] = ()
    iterations: int = Field(100, gt=0)
    eot: int = Field(1, gt=0)
    queries: int = Field(5000, gt=0)
    batch_size: int = Field(128, gt=0)
    draws: Literal["counted", "torch"] = "counted"

    def build(self, defended: bool) -> Attack:
        del defended
        return attacks.AutoAttack(self.threat.build(), self.version, self.attacks, self.iterations, self.eot, self.queries, self.batch_size, self.draws)

    def facts(self, defended: bool) -> dict[str, Any]:
        del defended
        own = {"attacks": self.attacks, "batch_size": self.batch_size, "draws_from": self.draws}
        return {"iterations": self.iterations, "eot": 20 if self.version == "rand" else self.eot, "restarts": 1, "version": self.version, **own}

    @model_validator(mode="after")
    def _known_noise_is_not_drawn(self) -> "AutoAttackConfig":
        if self.draws == "torch" and self.randomness == "fixed":
            raise ValueError("draws: torch draws the noise that randomness: fixed holds fixed; give one of them")
        return self


class AuditConfig(Section):
    """What `purify audit` measures beside the configured setting: gradients over all pairs of `t_star` and `steps`, in DiffPure's equal steps.

    `images` are compared; memory is measured at `memory_images`, DiffPure's conventions on `convention_images`, both not at all at 0.
    """

    images: int = Field(8, gt=0)
    t_star: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.05, 0.1, 0.2)
    steps: tuple[Annotated[int, Field(gt=0)], ...] = (10, 50)
    memory_images: int = Field(8, ge=0)
    convention_images: int = Field(128, ge=0)


class BenchConfig(Section):
    """One experiment: a defence, images, and attacks on both the bare and the defended classifier."""

    seed: int = 0
    data: DataConfig
    classifier: Annotated[ClassifierConfig, BeforeValidator(_named)]
    score: Annotated[ScoreConfig, BeforeValidator(_named)]
    purifier: PurifierConfig
    draws: int = Field(8, gt=0)
    batch_size: int = Field(64, gt=0)
    attacks: tuple[Annotated[PGDConfig | AutoAttackConfig, Field(discriminator="kind")], ...]
    pictures: int = Field(8, ge=0)
    audit: AuditConfig = AuditConfig()

    @model_validator(mode="after")
    def _names_are_unique(self) -> "BenchConfig":
        names = [attack.label for attack in self.attacks]
        repeated = sorted({name for name in names if names.count(name) > 1 or name == "none"})
        if repeated:
            raise ValueError(f"every attack needs a name of its own, repeated or reserved: {', '.join(repeated)}; give `name:`")
        if any(not name.replace("-", "").replace("_", "").replace(".", "").isalnum() for name in names):
            raise ValueError(f"attack names are file names, of letters, digits, '-', '_' and '.': {', '.join(names)}")
        return self
