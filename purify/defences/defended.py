"""A purifier in front of a classifier."""

import math
import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from purify.checks import check_choice, check_count
from purify.defences.diffusion_classifier import DiffusionClassifier
from purify.defences.keyed import takes_keys
from purify.defences.smoothed import Smoothed
from purify.defences.votes import plurality
from purify.noise import Purpose, derive_keys
from purify.purifiers.base import Purifier, Trajectory, trajectory_of


class DefendedClassifier(nn.Module):
    """Purifies, then classifies: images in [0, 1] -> logits. A random function of the image.

    Args:
        purifier: called as `purifier(x, keys)`, images in [0, 1] -> images in about [0, 1]: a `Purifier`, one
            `Resized`, or a `Sequential`.
        classifier: any module that maps images in [0, 1] to logits; its normalisation and resizing are its own. It is
            never altered: put it into evaluation mode yourself. One whose `forward` takes `keys`, for instance a
            `DiffusionClassifier`, gets keys of its own; in calls without keys it draws them itself, so that one that
            purifies needs another seed than the purifier.
        copies: purified copies of every image, with independent randomness, whose classifications are averaged: part of
            the model, differentiable, at `copies` times the cost (for ADP, Lee & Kim and DiffPure's BPDA protocol,
            whose votes are `predict`'s; a vote itself has no gradient).
        average: of what: "logits", or "probabilities", whose logarithm is returned.

    Raises:
        ValueError: an argument out of range or unknown.

    Warns (UserWarning) of a classifier that hides one with keys.
    """

    def __init__(
        self,
        purifier: nn.Module,
        classifier: nn.Module,
        copies: int = 1,
        average: Literal["logits", "probabilities"] = "logits",
    ):
        super().__init__()
        check_count(copies=copies)
        check_choice(("logits", "probabilities"), average=average)
        self.purifier = purifier
        self.classifier = classifier
        self.copies = copies
        self.average = average
        self._classifier_takes_keys = takes_keys(classifier)
        hidden = [
            type(module).__name__
            for module in classifier.modules()
            if isinstance(module, DiffusionClassifier | Purifier | Smoothed)
        ]
        if hidden and not self._classifier_takes_keys:
            message = (
                f"the classifier's forward has no parameter `keys`, so the {hidden[0]} inside draws fresh noise at"
                " every call"
            )
            warnings.warn(f"{message}: results depend on the batch; give it `keys=None` and pass them on", stacklevel=2)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits (b, classes) of one draw; `x` (b, c, h, w) in [0, 1], `keys` (b,) int64 or None for fresh randomness.

        With several copies, copy k of an image is a function of its key and k alone.
        """
        if self.copies == 1:
            return self._classified(self.purifier(x, keys), keys)
        copies = []
        for copy in range(self.copies):
            copy_keys = None if keys is None else derive_keys(keys, copy, 0, Purpose.COPY)
            copies.append(self._classified(self.purifier(x, copy_keys), copy_keys))
        logits = torch.stack(copies)
        return (
            logits.mean(0) if self.average == "logits" else logits.log_softmax(2).logsumexp(0) - math.log(self.copies)
        )

    def _classified(self, images: Tensor, keys: Tensor | None) -> Tensor:
        own = {}
        if self._classifier_takes_keys:
            own["keys"] = None if keys is None else derive_keys(keys, 0, 0, Purpose.CLASSIFIER)
        logits: Tensor = self.classifier(images, **own)
        return logits

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
            ValueError: several copies; a purifier without `trajectory`, or one that cannot differentiate it (see
                `Purifier.trajectory`).
        """
        if self.copies > 1:
            raise ValueError(
                f"a defence with copies={self.copies} has as many paths for an image, not one: give copies=1 for its"
                " states on the way"
            )
        trajectory = trajectory_of(self.purifier, f"the purifier {type(self.purifier).__name__}")
        inside = trajectory(x, keys, points, estimates)
        classified = (
            None
            if inside.estimates is None
            else torch.stack([self._classified(images, keys) for images in inside.estimates])
        )
        return inside._replace(result=self._classified(inside.result, keys), estimates=classified)

    @torch.no_grad()
    def predict(self, x: Tensor, votes: int = 1, keys: Tensor | None = None) -> Tensor:
        """Labels (b,) int64 by plurality over `votes` independent draws; `TIE` (-1), which is never right, where two
        classes tie.

        With `keys`, vote k of an image is a function of its key and k alone.
        """
        check_count(votes=votes)
        labels = []
        for vote in range(votes):
            vote_keys = None if keys is None else derive_keys(keys, vote, 0, Purpose.VOTE)
            labels.append(self(x, vote_keys).argmax(1))
        return plurality(torch.stack(labels, dim=1))
