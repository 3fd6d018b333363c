"""The configuration of `purify bench`."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import nn

from benchmarks import datasets
from benchmarks.classifiers import load_classifier
from benchmarks.config.attack_kinds import AnyAttackConfig
from benchmarks.config.purifier import AnyPurifierConfig
from benchmarks.config.sections import Section, naming
from benchmarks.datasets import Dataset
from purify import ScoreModel, load_score_model, plugins
from purify.score.model import LabelRounding


def named(value: object) -> object:
    """Accepts a bare name where a section with a name is expected."""
    return {"name": value} if isinstance(value, str) else value


def _runs(kind: plugins.Kind) -> AfterValidator:
    """Looks at code that a name of the form module:... leads to, so that mistakes in it come before any work."""

    def look(name: str) -> str:
        if name.startswith(plugins.PREFIX):
            plugins.load(kind, name, "a function without arguments")
        return name

    return AfterValidator(look)


class DataConfig(Section):
    """Images `first` .. `first + images - 1` of a data set, in its own order or, with `subset_seed`, shuffled as
    DiffPure's subsets are.
    """

    name: Annotated[str, _runs("datasets")]
    images: int = Field(gt=0)
    first: int = Field(0, ge=0)
    root: str | None = None
    subset_seed: int | None = Field(None, ge=0)

    def load(self) -> Dataset:
        """Raises DatasetError for what is not there or not usable."""
        with naming("data.name"):
            return datasets.load(self.name, self.root)


class ClassifierConfig(Section):
    """See `benchmarks.load_classifier`."""

    name: Annotated[str, _runs("classifiers")]
    dataset: str | None = None
    threat: str | None = None
    weights: str | None = None

    def load(self) -> nn.Module:
        """Raises CheckpointError for weights that are not there or cannot be used."""
        with naming("classifier.name"):
            return load_classifier(self.name, self.dataset, self.threat, self.weights)


class ScoreConfig(Section):
    """See `purify.load_score_model`, and `purify.ScoreModel` for `label_rounding`; `class_label` is for
    class-conditional networks.
    """

    name: Annotated[str, _runs("score_models")]
    architecture: str | None = None
    config: dict[str, Any] | str | None = None
    class_label: int | None = None
    label_rounding: LabelRounding | None = None

    def load(self) -> ScoreModel:
        """Not checked for plausibility: that takes images."""
        with naming("score.name"):
            model = load_score_model(self.name, self.architecture, self.config, check=False)
        model = model if self.class_label is None else model.with_class(self.class_label)
        return model if self.label_rounding is None else model.with_label_rounding(self.label_rounding)


class AuditConfig(Section):
    """What `purify audit` measures beside the configured setting: gradients over all pairs of `t_star` and `steps`, in
    DiffPure's equal steps.

    `images` are compared; memory is measured at `memory_images`, DiffPure's conventions on `convention_images`, both
    not at all at 0.
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
    classifier: Annotated[ClassifierConfig, BeforeValidator(named)]
    score: Annotated[ScoreConfig, BeforeValidator(named)]
    purifier: AnyPurifierConfig
    draws: int = Field(8, gt=0)
    batch_size: int = Field(64, gt=0)
    attacks: tuple[AnyAttackConfig, ...]
    pictures: int = Field(8, ge=0)
    audit: AuditConfig = AuditConfig()

    @model_validator(mode="after")
    def _names_are_unique(self) -> "BenchConfig":
        names = [attack.label for attack in self.attacks]
        repeated = sorted({name for name in names if names.count(name) > 1 or name == "none"})
        if repeated:
            raise ValueError(
                f"every attack needs a name of its own, repeated or reserved: {', '.join(repeated)}; give `name:`"
            )
        if any(not name.replace("-", "").replace("_", "").replace(".", "").isalnum() for name in names):
            raise ValueError(f"attack names are file names, of letters, digits, '-', '_' and '.': {', '.join(names)}")
        return self
