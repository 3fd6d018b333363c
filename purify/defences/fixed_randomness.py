"""A random model whose noise is fixed, and known to an attacker."""

import torch
from torch import Tensor, nn

from purify.purifiers.base import Trajectory, trajectory_of


class FixedRandomness(nn.Module):
    """A model with one key for all images and all calls: a deterministic function, whose noise an attacker knows.

    Args:
        model: called as `model(x, keys=...)`.
        key: any int64.
    """

    def __init__(self, model: nn.Module, key: int):
        super().__init__()
        self.model = model
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        """Logits (b, classes) of images `x` (b, c, h, w) in [0, 1]."""
        logits: Tensor = self.model(x, keys=self._keys(x))
        return logits

    def trajectory(self, x: Tensor, keys: Tensor | None = None, points: int = 4, estimates: bool = False) -> Trajectory:
        """The model's trajectory, see `DefendedClassifier.trajectory`; `keys` are not looked at."""
        trajectory = trajectory_of(self.model, f"the model {type(self.model).__name__}")
        return trajectory(x, self._keys(x), points, estimates)

    def _keys(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.key, dtype=torch.int64, device=x.device)
