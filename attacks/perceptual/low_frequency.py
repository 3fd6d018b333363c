"""The low-frequency attack of DiffBreak (Kassis et al. 2025, arXiv 2411.16598): learned filters under a perceptual
bound, on the expected loss.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.adam import AdamPath, Parameters
from attacks.attack import Attack
from attacks.inputs import also_called, check_positive
from attacks.paths import attack_along
from attacks.perceptual.feature_distance import FeatureDistance, check_feature_distance
from attacks.randomness import OfSearch, derive, uniform
from attacks.task import Task

_START_SIZE = 0.05
_INSIDE = 1 - 1e-6  # keeps atanh of black and white finite
_FIRST_WIDTH, _LEAST_WEIGHT = 0.2, 1e-5  # filters begin as Gaussians so narrow that they change next to nothing

CIFAR10_KERNELS = ((5, 5), (7, 7), (5, 5), (3, 3))
IMAGENET_KERNELS = ((21, 5), (5, 5), (17, 33), (7, 7), (47, 5), (33, 17), (17, 17), (5, 5), (3, 3))


def smooth(x: Tensor, logits: Tensor, kernel: tuple[int, int], guidance: Tensor, color: float) -> Tensor:
    """One filter: every pixel becomes a mean over its neighbourhood, with weights of its own.

    The weight of a neighbour is exp(logit) times exp(-d^2 / (2 color^2)), d being the sum over channels of how far the
    guidance differs there: edges stay.

    Args:
        x: (n, c, h, w).
        logits: (n, rows, columns, h, w) for one quarter of the neighbourhood, its centre last; the others mirror it.
        kernel: height and width of the neighbourhood, odd.
        guidance: (n, c, h, w), the original images.
        color: in the units of pixels.

    Returns:
        (n, c, h, w).
    """
    h, w = x.shape[2:]
    pad = (kernel[1] // 2, kernel[1] // 2, kernel[0] // 2, kernel[0] // 2)
    padded, guide = F.pad(x, pad, "reflect"), F.pad(guidance, pad, "reflect")
    shares = (logits - logits.amax((1, 2), keepdim=True).detach()).exp()
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for i, j in product(range(kernel[0]), range(kernel[1])):
        different = (guide[:, :, i : i + h, j : j + w] - guidance).abs().sum(1)
        share = (
            shares[:, min(i, kernel[0] - 1 - i), min(j, kernel[1] - 1 - j)]
            * (-0.5 * (different / color).square()).exp()
        )
        total = total + share[:, None] * padded[:, :, i : i + h, j : j + w]
        weights = weights + share[:, None]
    return total / weights


def _first_logits(kernel: tuple[int, int], like: Tensor) -> Tensor:
    """(rows, columns): one quarter of a Gaussian's logarithm, as `smooth` takes it."""
    rows, columns = ((torch.arange(size // 2 + 1) - size // 2).double().square() for size in kernel)
    weights = (-(rows[:, None] + columns[None]) / (2 * _FIRST_WIDTH**2)).exp()
    return weights.clamp(_LEAST_WEIGHT, 1 - _LEAST_WEIGHT).log().to(like)


@also_called(steps="iterations")
@dataclass(frozen=True)
class LowFrequency(Attack):
    """A cascade of learned filters over a learned change of the image that raises the mean loss over draws, within a
    perceptual bound.

    As in DiffBreak's code: images are filters(tanh(modifier)), each filter with weights of its own for every pixel,
    symmetric, and held back at the edges of the original image; Adam moves the filters by 0.05 and the modifier by
    0.008, 100 steps, margin loss, minus `penalty` times the distance where the bound is left, the gradient of each
    group clipped to length 1; the best point within the bound is kept. Published: LPIPS (VGG) at most 0.05, kernels
    `CIFAR10_KERNELS` with penalty 1e8, or `IMAGENET_KERNELS` with 1e4 (also for CelebA-HQ), EOT 128 and 16.

    What differs: gradients are clipped for each image instead of each batch; where the last point lies outside the
    bound, it is brought back by bisection towards the original and stands for election beside the best point inside, on
    fresh draws; and the bound may be any `FeatureDistance`.

    Args:
        threat: the perceptual bound: `lpips_distance(0.05)` as published, or a `FeatureDistance` in features of your
            own.
        iterations: steps per restart.
        eot: draws of the model per gradient.
        kernels: heights and widths of the filters, odd.
        color: difference of the original's pixels, summed over channels, across which filters hardly reach.
        filter_step, pixel_step: Adam's step sizes.
        penalty: weight of the distance outside of the bound.
        loss: "margin", "ce" or "dlr".
        restarts: independent runs, the first from the image itself, others from slightly changed ones; the best is kept
            on fresh draws.
        stop_draws: as for `PGD`.
        batch_size: rows (images times draws) of one call of the model, and images of one pass through the filters,
            whose memory grows with the kernels.
    """

    threat: FeatureDistance
    iterations: int = 100
    eot: int = 1
    kernels: tuple[tuple[int, int], ...] = CIFAR10_KERNELS
    color: float = 0.05
    filter_step: float = 0.05
    pixel_step: float = 0.008
    penalty: float = 1e8
    loss: str = "margin"
    restarts: int = 1
    stop_draws: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_feature_distance(self)
        if not self.kernels or not all(
            len(kernel) == 2 and all(isinstance(size, int) and size > 0 and size % 2 for size in kernel)
            for kernel in self.kernels
        ):
            raise ValueError(f"kernels must be pairs of odd positive integers, got {self.kernels!r}")
        check_positive(self, "color", "filter_step", "pixel_step", "penalty")

    def run(self, task: Task) -> Tensor:
        """As of `Attack`.

        Raises:
            ValueError: a kernel does not fit the images.
        """
        shape = tuple(task.x.shape[1:])
        for height, width in self.kernels:
            if height // 2 >= shape[1] or width // 2 >= shape[2]:
                raise ValueError(
                    f"kernels: {(height, width)} does not fit images of {shape[1]} x {shape[2]}, whose edges it"
                    " mirrors: use smaller ones"
                )

        def path(rows: Tensor, keys: Tensor, restart: int) -> AdamPath:
            images = task.x[rows]
            begin = _to_free(images if task.start is None or restart else task.start[rows])
            if restart:
                begin = begin + _START_SIZE * (2 * uniform(derive(keys, OfSearch.START), shape, images.dtype) - 1)
            filters = [
                _first_logits(kernel, images)[None, :, :, None, None].expand(len(rows), -1, -1, *shape[1:]).contiguous()
                for kernel in self.kernels
            ]
            return AdamPath(
                images,
                [*filters, begin],
                [self.filter_step] * len(filters) + [self.pixel_step],
                apply=self._apply,
                examine=self._examine,
                finish=lambda parameters, of: self.threat.project(self._apply(parameters, of), of),
                clip=1.0,
            )

        return attack_along(task, self, path)

    def _apply(self, parameters: Parameters, x: Tensor) -> Tensor:
        *filters, free = parameters
        images = (free.tanh() + 1) / 2
        for logits, kernel in zip(filters, self.kernels, strict=True):
            images = smooth(images, logits, kernel, x, self.color)
        return images

    def _examine(self, parameters: Parameters, x: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        distance = self.threat.distance(images, x)
        outside = distance.detach() > self.threat.epsilon
        return self.penalty * torch.where(outside, distance, torch.zeros_like(distance)), ~outside


def _to_free(images: Tensor) -> Tensor:
    """What (tanh + 1) / 2 turns into the images."""
    return ((2 * images - 1) * _INSIDE).atanh()
