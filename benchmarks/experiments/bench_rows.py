"""The rows of `purify bench`: which model is judged under which attack."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.config.attack import AttackConfig, ModelName
from benchmarks.evaluation.evaluate import Randomness
from benchmarks.evaluation.result import Evaluation


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        model_name: what results call the model; `model` itself.
        attack_config: what the configuration says of the attack, None for clean images; `attack` itself.
        attack_model: what the attack differentiates.
    """

    model_name: ModelName
    model: nn.Module
    attack_config: AttackConfig | None = None
    attack: Any = None
    attack_model: nn.Module | None = None

    @property
    def attack_name(self) -> str:
        return "none" if self.attack_config is None else self.attack_config.label

    @property
    def threat(self) -> Any:
        """With a distance, an epsilon and a name: `attacks.Threat`, for instance."""
        return None if self.attack is None else self.attack.threat

    @property
    def randomness(self) -> Randomness:
        """Fixed noise is asked of the defence only: the bare classifier has none."""
        return (
            "fresh" if self.attack_config is None or self.model_name == "undefended" else self.attack_config.randomness
        )


Measurement = tuple[Row, Evaluation]
"""A row, and what was measured."""
