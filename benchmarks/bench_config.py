"""The configuration of `purify bench`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

import attacks
from benchmarks.config import Section
from benchmarks.evaluate import Attack, Randomness
from purify.gradients import GradientMode
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


class DataConfig(Section):
    """Images `first` .. `first + images - 1` of a data set."""

    name: str
    images: int = Field(gt=0)
    first: int = Field(0, ge=0)
    root: str | None = None


class PurifierConfig(Section):
    """See `purify.DiffPure`, which checks the values."""

    scheme: Literal["diffpure"] = "diffpure"
    t_star: float
    steps: int
    gradient: GradientMode = "exact"
    solver: str = "torchsde"
    method: str = "euler"
    eta: float = 1.0
    t_end: float = 1e-5
    grid: Grid = "uniform"
    noising: Literal["continuous", "discrete"] = "continuous"


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
        return attacks.PGD(self.threat.build(), self.steps, self._eot(defended), self.step_size, self.loss, self.restarts, self.random_start, self.batch_size)

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
    classifier: str
    score: str
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
