"""How well a score model denoises, beside the best linear denoiser of its training images."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.datasets import Dataset
from purify import objectives
from purify.noise import Stage, noise_keys, standard_normal
from purify.score import ScoreModel

LINEAR_LIMIT = 5000
"""Most numbers of an image for which the linear denoiser is fitted: its covariance has their square."""

_IMAGES = 1000
_BATCH = 250


def own_times(model: ScoreModel, times: Iterable[float]) -> dict[str, float]:
    """Those noise levels, given as times of `LinearVP()`, that the model was trained on: each with its own time of as much noise."""
    own = {str(t): float(model.time_of_vp(t)) for t in times}
    return {name: min(t, model.t_max) for name, t in own.items() if t <= model.t_max * (1 + 1e-9)}  # the way there and back rounds


@torch.no_grad()
def denoising_errors(model: ScoreModel, test_set: Dataset, times: Mapping[str, float]) -> dict[str, float]:
    """Mean squared error of E[x0 | x_t] per pixel, in units where images are in [-1, 1], on the first 1,000 test images with one draw of noise each.

    Args:
        model: on any device.
        test_set: of images that the model takes.
        times: name -> time of the model's own process.
    """
    device = next(model.parameters()).device
    x0, noise = _test_images(model, test_set)
    errors = {}
    for name, t in times.items():
        total = 0.0
        for clean, n in zip(x0.split(_BATCH), noise.split(_BATCH), strict=True):
            clean, n = clean.to(device), n.to(device)
            total += float((model.denoised(model.diffuse(clean, n, t), t) - clean).square().sum())
        errors[name] = round(_in_unit_pixels(total / x0.numel(), model), 6)
    return errors


@dataclass(frozen=True)
class LinearDenoiser:
    """The Wiener filter: the best affine estimate of x0 from x_t, for data of known mean and covariance.

    Attributes:
        mean: (d,) of the images, flattened, in the model's range.
        variances: (d,) eigenvalues of their covariance.
        directions: (d, d) its eigenvectors, as columns.
    """

    mean: Tensor
    variances: Tensor
    directions: Tensor

    @classmethod
    def fit(cls, train_set: Dataset, value_range: tuple[float, float]) -> "LinearDenoiser":
        """From all images of a data set. Raises ValueError for images of more than `LINEAR_LIMIT` numbers."""
        size = math.prod(train_set.images.shape[1:])
        if size > LINEAR_LIMIT:
            raise ValueError(f"a linear denoiser is fitted to images of at most {LINEAR_LIMIT:,} numbers, these have {size:,}")
        parts = [slice(first, first + 5000) for first in range(0, len(train_set), 5000)]
        flat = (objectives.to_network_range(train_set.images[rows], value_range).flatten(1) for rows in parts)
        mean = torch.stack([part.sum(0, dtype=torch.float64) for part in flat]).sum(0) / len(train_set)
        covariance = torch.zeros(size, size, dtype=torch.float64)
        for rows in parts:
            centred = objectives.to_network_range(train_set.images[rows], value_range).flatten(1) - mean.float()
            covariance += centred.T @ centred
        variances, directions = torch.linalg.eigh(covariance / len(train_set))
        return cls(mean, variances.clamp_min(0), directions)

    def errors(self, model: ScoreModel, test_set: Dataset, times: Mapping[str, float]) -> dict[str, float]:
        """What `denoising_errors` measures, of this denoiser: on the same images and noise, at the noise levels of the model's process."""
        x0, noise = (images.flatten(1).double() for images in _test_images(model, test_set))
        clean, n = (x0 - self.mean) @ self.directions, noise @ self.directions
        errors = {}
        for name, t in times.items():
            alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
            gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
            errors[name] = round(_in_unit_pixels(float((gain * (alpha * clean + sigma * n) - clean).square().mean()), model), 6)
        return errors


def _test_images(model: ScoreModel, test_set: Dataset) -> tuple[Tensor, Tensor]:
    """Clean images in the model's range, and the noise that measurements give them."""
    count = min(_IMAGES, len(test_set))
    x0 = objectives.to_network_range(test_set.images[:count], model.value_range)
    return x0, standard_normal(noise_keys(0, torch.arange(count), 0), Stage.FORWARD, 0, tuple(x0.shape[1:]))


def _in_unit_pixels(error: float, model: ScoreModel) -> float:
    low, high = model.value_range
    return error * (2 / (high - low)) ** 2
