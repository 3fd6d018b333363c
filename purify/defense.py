"""A purifier in front of a classifier."""

import torch
from torch import Tensor, nn

from purify.noise import Purpose, derive_keys
from purify.purifiers.base import Trajectory

TIE = -1
"""The label that `predict` gives where no class has the most votes: it equals no true label."""


class DefendedClassifier(nn.Module):
    """Purifies, then classifies: images in [0, 1] -> logits. A random function of the image.

    Args:
        purifier: called as `purifier(x, keys)`, images in [0, 1] -> images in about [0, 1]: a `Purifier`, or one `Resized`.
        classifier: any module that maps images in [0, 1] to logits; its normalisation and resizing are its own. It is never altered: put it
            into evaluation mode yourself.
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module):
        super().__init__()
        self.purifier = purifier
        self.classifier = classifier

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits (b, classes) of one draw; `x` (b, c, h, w) in [0, 1], `keys` (b,) int64 or None for fresh randomness."""
        return self.classifier(self.purifier(x, keys))

    def trajectory(self, x: Tensor, keys: Tensor | None = None, points: int = 4, estimates: bool = False) -> Trajectory:
        """As `forward`, with the purifier's states on the way: what attacks that look inside ask for.

        Args:
            x: as for `forward`.
            keys: as for `forward`.
            points: how many states, from 2, evenly spaced over the purifier's steps.
            estimates: whether to classify the clean images that the states stand for too.

        Returns:
            `Trajectory` with logits as `result`, and as `estimates` (p - 1, b, classes) or None.

        Raises:
            ValueError: a purifier without `trajectory`, or one that cannot differentiate it (see `Purifier.trajectory`).
        """
        if not hasattr(self.purifier, "trajectory"):
            raise ValueError(f"the purifier {type(self.purifier).__name__} has no method `trajectory`, so its states on the way are unknown")
        inside = self.purifier.trajectory(x, keys, points, estimates)
        classified = None if inside.estimates is None else torch.stack([self.classifier(images) for images in inside.estimates])
        return inside._replace(result=self.classifier(inside.result), estimates=classified)

    @torch.no_grad()
    def predict(self, x: Tensor, votes: int = 1, keys: Tensor | None = None) -> Tensor:
        """Labels (b,) int64 by plurality over `votes` independent draws; `TIE` (-1), which is never right, where two classes tie.

        With `keys`, vote k of an image is a function of its key and k alone.
        """
        if votes < 1:
            raise ValueError(f"votes must be a positive integer, got {votes}")
        labels = []
        for vote in range(votes):
            vote_keys = None if keys is None else derive_keys(keys, vote, 0, Purpose.VOTE)
            labels.append(self(x, vote_keys).argmax(1))
        return plurality(torch.stack(labels, dim=1))


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
        return self.model(x, keys=self._keys(x))

    def trajectory(self, x: Tensor, keys: Tensor | None = None, points: int = 4, estimates: bool = False) -> Trajectory:
        """The model's trajectory, see `DefendedClassifier.trajectory`; `keys` are not looked at."""
        if not hasattr(self.model, "trajectory"):
            raise ValueError(f"the model {type(self.model).__name__} has no method `trajectory`, so its states on the way are unknown")
        return self.model.trajectory(x, self._keys(x), points, estimates)

    def _keys(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.key, dtype=torch.int64, device=x.device)


def plurality(labels: Tensor) -> Tensor:
    """The most frequent label of each row, (b, votes) int64 -> (b,) int64, or `TIE`. Labels are at least 0."""
    counts = torch.zeros(len(labels), int(labels.max()) + 1, dtype=torch.int64, device=labels.device)
    counts.scatter_add_(1, labels, torch.ones_like(labels))
    most, winner = counts.max(1)
    return torch.where((counts == most[:, None]).sum(1) == 1, winner, TIE)
