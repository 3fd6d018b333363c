"""The configuration of `purify certify`."""

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from benchmarks.config.bench import ClassifierConfig, DataConfig, ScoreConfig, named
from benchmarks.config.sections import Section
from benchmarks.evaluation.certification import check_draws

Sigma = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Radius = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _several(value: object) -> object:
    """Accepts one number where several are expected."""
    return (value,) if isinstance(value, int | float) else value


class CertifyConfig(Section):
    """Randomised smoothing of one classifier at one noise level or several; see
    `benchmarks.evaluation.certification.certify`.

    `sigma` and `radii` are L2, on images in [0, 1]. Without a `score` the bare classifier is smoothed: Cohen et al.
    2019, for classifiers trained on noise. `batch_size` counts noisy draws. `radii` are where the certified accuracy is
    reported; the figure has all.
    """

    seed: int = 0
    data: DataConfig
    classifier: Annotated[ClassifierConfig, BeforeValidator(named)]
    score: Annotated[ScoreConfig | None, BeforeValidator(named)]
    sigma: Annotated[tuple[Sigma, ...], BeforeValidator(_several), Field(min_length=1)]
    n0: int = Field(100, gt=0)
    n: int = Field(10_000, gt=0)
    alpha: float = Field(0.001, gt=0, lt=1)
    radii: tuple[Radius, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    batch_size: int = Field(256, gt=0)

    @model_validator(mode="after")
    def _makes_sense(self) -> "CertifyConfig":
        check_draws(self.n0, self.n, self.alpha)
        for name, values in (("sigma", self.sigma), ("radii", self.radii)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} holds a value twice: {', '.join(map(str, values))}")
        return self
