"""Configuration of `purify train`."""

from typing import Any, Literal

from pydantic import Field, model_validator

from benchmarks.config.bench import ClassifierConfig
from benchmarks.config.sections import Section
from purify.score.parametrisation import Prediction
from purify.training import objectives


class DataConfig(Section):
    """`train` and `test` are data set names, `root` the folder of their files."""

    train: str
    test: str
    root: str | None = None


class TimesConfig(Section):
    """Noise levels: "uniform", see `purify.training.objectives.TimeSampling`; "log-snr", `LogSNRTimes`; "lognormal",
    `LognormalTimes`, with `mean` and `std`.
    """

    distribution: Literal["uniform", "log-snr", "lognormal"] = "uniform"
    t_min: float = 1e-5
    t_max: float = 1.0
    focus: float = 0.3
    focus_share: float = 0.0
    mean: float = -1.2
    std: float = 1.2

    @model_validator(mode="after")
    def _keys_of_other_distributions_are_left_alone(self) -> "TimesConfig":
        for kind, names in {"uniform": ("focus", "focus_share"), "lognormal": ("mean", "std")}.items():
            if self.distribution != kind and any(
                getattr(self, name) != type(self).model_fields[name].default for name in names
            ):
                raise ValueError(f"{' and '.join(names)} go with distribution: {kind}, not with {self.distribution}")
        return self

    def build(self) -> objectives.Times:
        """Raises ValueError for times that do not make an interval."""
        match self.distribution:
            case "uniform":
                return objectives.TimeSampling(self.t_min, self.t_max, self.focus, self.focus_share)
            case "log-snr":
                return objectives.LogSNRTimes(self.t_min, self.t_max)
        return objectives.LognormalTimes(self.t_min, self.t_max, self.mean, self.std)


class AdversarialConfig(Section):
    """See `purify.training.adversarial.Perturbation`."""

    classifier: ClassifierConfig
    rounds: int = 5
    strength: float = 0.03
    largest: float = 0.3


class ObjectiveConfig(Section):
    """Denoising score matching with a weighting of `purify.training.objectives.weights`; with `addt`, adversarial
    denoising diffusion training.
    """

    weighting: objectives.Weighting = "simple"
    addt: AdversarialConfig | None = None


class ModelConfig(Section):
    """What else a score network is beside `schedule` and `prediction`, see `purify.ScoreModel`."""

    time_label: Literal["t", "sigma"] = "t"
    time_scale: float = 1.0
    time_offset: float = 0.0
    sigma_data: float = 0.5
    value_range: tuple[float, float] = (-1.0, 1.0)


class AugmentationConfig(Section):
    """Mirroring; for classifiers also shifts by up to so many pixels, and label smoothing of the loss."""

    shift: int = Field(0, ge=0)
    flip: bool = False
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class OptimisationConfig(Section):
    """See `purify.training.loop.TrainingSettings`."""

    steps: int = Field(gt=0)
    batch_size: int = Field(128, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(200, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 0


class TrainConfig(Section):
    """A training run: of a score network or of a classifier.

    `init` names trained weights to start from, a packaged name or a file of `purify train`; without it, they are drawn
    from the seed. `notes` are what a user of the weights should know, for the model card; they travel in the file.
    """

    task: Literal["score", "classifier"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataConfig
    architecture: str
    network: dict[str, Any]
    training: OptimisationConfig
    schedule: dict[str, Any] = {"name": "LinearVP"}
    prediction: Prediction = "v"
    model: ModelConfig = ModelConfig()
    times: TimesConfig = TimesConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    init: str | None = None
    notes: list[str] = []
    checkpoint_minutes: float = Field(3.0, gt=0)

    @model_validator(mode="after")
    def _score_networks_see_no_shifts(self) -> "TrainConfig":
        if self.task == "score" and (self.augmentation.shift or self.augmentation.label_smoothing):
            raise ValueError("augmentation.shift and augmentation.label_smoothing are for task: classifier")
        return self

    @model_validator(mode="after")
    def _classifiers_have_no_noise_levels(self) -> "TrainConfig":
        if self.task == "classifier":
            asked = [
                name
                for name in ("schedule", "prediction", "model", "times", "objective")
                if getattr(self, name) != type(self).model_fields[name].default
            ]
            if asked:
                raise ValueError(f"{', '.join(asked)}: for task: score, a classifier is trained without noise")
        return self
