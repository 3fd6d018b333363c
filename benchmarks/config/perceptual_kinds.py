"""What a configuration adds to attacks beyond norm balls."""

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from attacks.perceptual.feature_distance import FeatureDistance, lpips_distance
from benchmarks.classifiers import load_classifier
from benchmarks.config.attack import AttackConfig
from benchmarks.config.derive import Fraction
from benchmarks.config.sections import Section


class BoundConfig(AttackConfig):
    """An attack with a `bound` of its own kind in place of a threat."""

    threat: None = None
    first: ClassVar[tuple[str, ...]] = ("iterations", "eot", "loss", "restarts", "stop_draws", "batch_size")


class ReColorKind(BoundConfig):
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

    threat: FeatureThreatConfig  # type: ignore[assignment]  # in place of a norm ball's
    first: ClassVar[tuple[str, ...]] = BoundConfig.first
    stand_in: ClassVar[dict[str, Any]] = {"threat": FeatureDistance(nn.Identity(), 1.0)}


class LowFrequencyKind(PerceptualConfig):
    def check_model(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        for height, width in self.kernels:
            if height // 2 >= shape[1] or width // 2 >= shape[2]:
                raise ValueError(
                    f"attack {self.label!r}: the kernel {(height, width)} does not fit images of {shape[1]} x"
                    f" {shape[2]}"
                )
