"""The configuration of each kind of attack beyond norm balls."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from attacks.perceptual.feature_distance import FeatureDistance, lpips_distance
from attacks.perceptual.low_frequency import CIFAR10_KERNELS, LowFrequency
from attacks.perceptual.perceptual_pgd import PerceptualPGD
from attacks.perceptual.recolor import ReColorAdv
from attacks.perceptual.spatial import StAdv
from benchmarks.classifiers import load_classifier
from benchmarks.config.attack import AttackConfig, Count, Fraction, Loss
from benchmarks.config.sections import Section

_AtLeastTwo = Annotated[int, Field(ge=2)]


class BoundConfig(AttackConfig):
    """An attack with a `bound` of its own kind in place of a threat."""

    threat: None = None
    iterations: Count = 100
    eot: Count = 1
    loss: Loss = "margin"
    restarts: Count = 1
    stop_draws: int = Field(0, ge=0)
    batch_size: Count = 256


class StAdvConfig(BoundConfig):
    """See `attacks.perceptual.spatial.StAdv`."""

    makes: ClassVar[type] = StAdv
    kind: Literal["stadv"]
    bound: Fraction = Field(0.05, gt=0)
    step_size: Fraction = Field(0.01, gt=0)
    smoothness: float | None = Field(None, ge=0)


class ReColorConfig(BoundConfig):
    """See `attacks.perceptual.recolor.ReColorAdv`: for RGB images."""

    makes: ClassVar[type] = ReColorAdv
    kind: Literal["recolor"]
    bound: Fraction = Field(0.06, gt=0)
    step_size: Fraction = Field(0.001, gt=0)
    smoothness: float | None = Field(None, ge=0)
    resolution: tuple[_AtLeastTwo, _AtLeastTwo, _AtLeastTwo] = (16, 32, 32)

    def check_model(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        if shape[0] != 3:
            raise ValueError(
                f"attack {self.label!r}: recolor changes the colours of RGB images, these have {shape[0]} channels"
            )


class FeatureThreatConfig(Section):
    """A distance in the features of a network: `lpips-vgg`, `lpips-alex` and `lpips-squeeze` are LPIPS, another name
    one of `benchmarks.load_classifier`'s.

    Features of a `module:` may be feature maps; of a classifier they are its logits. Either way results are labelled a
    feature distance.
    """

    features: str
    epsilon: Fraction = Field(gt=0)

    def build(self) -> FeatureDistance:
        if self.features.startswith("lpips-"):
            return lpips_distance(self.epsilon, self.features.removeprefix("lpips-"))  # type: ignore[arg-type]
        return FeatureDistance(
            load_classifier(self.features).requires_grad_(False),
            self.epsilon,
            name=f"feature distance ({self.features})",
        )


class PerceptualConfig(AttackConfig):
    """An attack within a distance in features."""

    threat: FeatureThreatConfig  # type: ignore[assignment]
    iterations: Count = 100
    eot: Count = 1
    loss: Loss = "margin"
    restarts: Count = 1
    stop_draws: int = Field(0, ge=0)
    batch_size: Count = 256


class LowFrequencyConfig(PerceptualConfig):
    """See `attacks.perceptual.low_frequency.LowFrequency`."""

    makes: ClassVar[type] = LowFrequency
    kind: Literal["low_frequency"]
    kernels: tuple[tuple[Count, Count], ...] = CIFAR10_KERNELS
    color: float = Field(0.05, gt=0)
    filter_step: Fraction = Field(0.05, gt=0)
    pixel_step: Fraction = Field(0.008, gt=0)
    penalty: float = Field(1e8, gt=0)

    def check_model(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        for height, width in self.kernels:
            if height // 2 >= shape[1] or width // 2 >= shape[2]:
                raise ValueError(
                    f"attack {self.label!r}: the kernel {(height, width)} does not fit images of {shape[1]} x"
                    f" {shape[2]}"
                )


class PerceptualPGDConfig(PerceptualConfig):
    """See `attacks.perceptual.perceptual_pgd.PerceptualPGD`."""

    makes: ClassVar[type] = PerceptualPGD
    kind: Literal["perceptual"]
    iterations: Count = 40
    cg_iterations: Count = 20
    step_size: Fraction | None = Field(None, gt=0)
