"""How well a score model denoises, beside a linear denoiser of its training images."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from purify.noise import Stage, noise_keys, standard_normal
from purify.score.model import ScoreModel
from purify.training import objectives

LARGEST = 5000
"""Most numbers of an image for which a linear denoiser is fitted: its covariance has their square."""

PLENTY = 10
"""Training images for each number of an image from which a linear denoiser is about the best there is; with 16, its
error is 1 % more.
"""


class ImageSet(Protocol):
    """Images and how many they are, `benchmarks.datasets.Dataset` for instance."""

    @property
    def images(self) -> Any:
        """uint8 (n, c, h, w) in [0, 255], with a shape; a slice is a tensor."""

    def __len__(self) -> int: ...


_MEASURED = 1000
_BATCH = 250 * 3 * 32 * 32  # numbers that go through a network at once


def own_times(model: ScoreModel, times: Iterable[float]) -> dict[float, float]:
    """Those noise levels, given as times of `LinearVP()`, that the model was trained on: each with its own time of as
    much noise.
    """
    own = {t: float(model.time_of_vp(t)) for t in times}
    # the way there and back rounds
    return {name: min(t, model.t_max) for name, t in own.items() if t <= model.t_max * (1 + 1e-9)}


def measured_images(test_set: ImageSet) -> int:
    """How many of a test set's images are measured: the first 1,000."""
    return min(_MEASURED, len(test_set))


def batch_of(shape: Iterable[int]) -> int:
    """How many images of that shape go through a network at once."""
    return max(1, _BATCH // math.prod(shape))


@torch.no_grad()
def denoising_errors(
    model: ScoreModel,
    test_set: ImageSet,
    times: Mapping[float, float],
    progress: Callable[[int, str], None] = lambda done, note: None,
) -> dict[float, float]:
    """Mean squared error of E[x0 | x_t] per pixel, in units where images are in [-1, 1], on the measured images with
    one draw of noise each.

    Args:
        model: on any device.
        test_set: of images that the model takes.
        times: as of `own_times`.
        progress: told how many noise levels are done.

    Returns:
        An error for each key of `times`.
    """
    device = next(model.parameters()).device
    x0, noise = _test_images(model, test_set)
    batch, errors = batch_of(x0.shape[1:]), {}
    for name, t in times.items():
        total = 0.0
        for clean, n in zip(torch.split(x0, batch), torch.split(noise, batch), strict=True):
            clean, n = clean.to(device), n.to(device)
            total += float((model.denoised(model.diffuse(clean, n, t), t) - clean).square().sum())
        errors[name] = _on_symmetric_range(total / x0.numel(), model)
        progress(len(errors), "")
    return errors


@dataclass(frozen=True)
class LinearDenoiser:
    """The Wiener filter: the best affine estimate of x0 from x_t, for data of known mean and covariance; here they are
    estimated.

    Attributes:
        mean: (d,) of the images, flattened, in the model's range.
        variances: (d,) eigenvalues of their covariance.
        directions: (d, d) its eigenvectors, as columns.
    """

    mean: Tensor
    variances: Tensor
    directions: Tensor

    @staticmethod
    def can_fit(train_set: ImageSet) -> bool:
        """Whether the images are small enough."""
        return _numbers(train_set) <= LARGEST

    @staticmethod
    def has_plenty(train_set: ImageSet) -> bool:
        """Whether there are so many images that the fit is about the best linear denoiser of their kind; with fewer,
        its errors are too large.
        """
        return len(train_set) >= PLENTY * _numbers(train_set)

    @classmethod
    def fit(cls, train_set: ImageSet, value_range: tuple[float, float]) -> "LinearDenoiser":
        """From all images of a data set. Raises ValueError for images of more than `LARGEST` numbers."""
        size = _numbers(train_set)
        if not cls.can_fit(train_set):
            raise ValueError(
                f"a linear denoiser is fitted to images of at most {LARGEST:,} numbers, these have {size:,}"
            )
        parts = [slice(first, first + 5000) for first in range(0, len(train_set), 5000)]
        flat = (objectives.to_network_range(train_set.images[rows], value_range).flatten(1) for rows in parts)
        mean = torch.stack([part.sum(0, dtype=torch.float64) for part in flat]).sum(0) / len(train_set)
        covariance = torch.zeros(size, size, dtype=torch.float64)
        for rows in parts:
            centred = objectives.to_network_range(train_set.images[rows], value_range).flatten(1) - mean.float()
            covariance += centred.T @ centred
        variances, directions = torch.linalg.eigh(covariance / len(train_set))
        return cls(mean, variances.clamp_min(0), directions)

    def errors(self, model: ScoreModel, test_set: ImageSet, times: Mapping[float, float]) -> dict[float, float]:
        """What `denoising_errors` measures, of this denoiser: on the same images and noise, at the noise levels of the
        model's process.
        """
        x0, noise = (images.flatten(1).double() for images in _test_images(model, test_set))
        clean, n = (x0 - self.mean) @ self.directions, noise @ self.directions
        errors = {}
        for name, t in times.items():
            alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
            gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
            errors[name] = _on_symmetric_range(
                float((gain * (alpha * clean + sigma * n) - clean).square().mean()), model
            )
        return errors


def _numbers(images: ImageSet) -> int:
    """Of one image."""
    shape: tuple[int, ...] = images.images.shape[1:]
    return math.prod(shape)


def _test_images(model: ScoreModel, test_set: ImageSet) -> tuple[Tensor, Tensor]:
    """Clean images in the model's range, and the noise that measurements give them."""
    count = measured_images(test_set)
    x0 = objectives.to_network_range(test_set.images[:count], model.value_range)
    return x0, standard_normal(noise_keys(0, torch.arange(count), 0), Stage.FORWARD, 0, tuple(x0.shape[1:]))


def _on_symmetric_range(error: float, model: ScoreModel) -> float:
    """A squared error of pixels in the model's range as one of pixels in [-1, 1]."""
    low, high = model.value_range
    return round(error * (2 / (high - low)) ** 2, 6)
