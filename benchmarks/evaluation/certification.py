"""Certified radii of a smoothed classifier: arrays in, predictions and radii out.

The procedure is CERTIFY of Cohen et al. 2019 (arXiv 1902.02918, section 3.2.2). For each image, n0 noisy draws choose a
class, n other draws count how often the base classifier gives it, and a one-sided Clopper-Pearson bound p_lower on its
probability gives the radius sigma Phi^-1(p_lower); with p_lower <= 1/2 it abstains.

What a certificate claims: with probability at least 1 - alpha over the n0 + n draws, the smoothed classifier g(x) =
argmax_c P(base(x + noise) = c) gives the certified class at every x' with |x' - x|_2 < radius, in the L2 norm on images
in [0, 1]. That holds for each image on its own: among many, a share of up to alpha may be wrong. What it does not
claim: anything about other norms; about a single noisy draw, or a single purified image, which may well be wrong inside
the radius; about a vote of finitely many draws, unless it abstains as PREDICT does; or that the class is the true one.
It is a statement of real arithmetic and ideal normals: floating point can break it (Voracek & Hein 2022, arXiv
2207.07209).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from attacks.inputs import check_inputs
from benchmarks.evaluation.checks import check_inference_mode, count_network_evaluations
from benchmarks.evaluation.precision import full_precision
from benchmarks.evaluation.statistics import Estimate, bootstrap_mean, wilson
from purify.defences.smoothed import Smoothed
from purify.defences.votes import NO_CLASS
from purify.noise import noise_keys

ABSTAIN = NO_CLASS
"""The prediction where nothing can be certified; equals no label."""


def clopper_pearson_lower(hits: np.ndarray, draws: int, alpha: float) -> np.ndarray:
    """One-sided lower bounds on probabilities: each exceeds its true one with probability at most `alpha` (Clopper &
    Pearson 1934).

    Args:
        hits: integers in [0, draws], of any shape.
        draws: number of independent trials, from 1.
        alpha: in (0, 1).

    Returns:
        float64 of the shape of `hits`: the p with P(Binomial(draws, p) >= hits) = alpha, 0 for no hits.
    """
    hits = np.asarray(hits)
    return np.where(hits == 0, 0.0, special.betaincinv(np.maximum(hits, 1), draws - hits + 1, alpha))


def radius_of(probability: np.ndarray, sigma: float) -> np.ndarray:
    """sigma Phi^-1(p): the L2 radius within which a class of probability at least p > 1/2 stays the likeliest (Cohen et
    al. 2019, theorem 1); else 0.
    """
    radius: np.ndarray = np.maximum(sigma * special.ndtri(probability), 0.0)
    return radius


@dataclass(frozen=True)
class Certification:
    """What was counted, and what follows from it.

    Attributes:
        selection: (images, classes) int64, on the CPU: how often each class was given in the `n0` draws that choose
            one.
        counts: (images, classes) int64: the same of the `n` draws that estimate.
        labels: (images,) int64.
        sigma: of the noise, on images in [0, 1].
        n0: draws for the choice, for each image.
        n: draws for the estimate.
        alpha: probability of a wrong certificate, for each image.
        seconds: wall time.
        network_evaluations: images that went through the score network.
    """

    selection: Tensor
    counts: Tensor
    labels: Tensor
    sigma: float
    n0: int
    n: int
    alpha: float
    seconds: float
    network_evaluations: int

    @cached_property
    def hits(self) -> np.ndarray:
        """(images,): how many of the `n` draws give the class that the `n0` draws chose."""
        return np.take_along_axis(self.counts.numpy(), self._chosen[:, None], 1)[:, 0]

    @cached_property
    def lower_bounds(self) -> np.ndarray:
        """(images,) float64: of the chosen class's probability."""
        return clopper_pearson_lower(self.hits, self.n, self.alpha)

    @cached_property
    def radii(self) -> np.ndarray:
        """(images,) float64: certified L2 radius on images in [0, 1], 0 where nothing is certified."""
        return radius_of(self.lower_bounds, self.sigma)

    @property
    def largest_radius(self) -> float:
        """What the draws can certify where they all agree, sigma Phi^-1(alpha^(1/n)): no radius beyond it is seen,
        however robust the classifier.
        """
        return float(radius_of(clopper_pearson_lower(np.array(self.n), self.n, self.alpha), self.sigma))

    @cached_property
    def predictions(self) -> np.ndarray:
        """(images,) int64: the certified class, or `ABSTAIN`."""
        return np.where(self.lower_bounds > 0.5, self._chosen, ABSTAIN)

    @cached_property
    def smoothed(self) -> np.ndarray:
        """(images,) int64: PREDICT of Cohen et al. over the `n` draws: g(x), wrong with probability at most alpha, or
        `ABSTAIN`.
        """
        two = self.counts.topk(2, dim=1)
        first, second = two.values.numpy().T
        # A two-sided test of a fair coin: is the first class really given more often than the second?
        p_value = np.minimum(1.0, 2 * stats.binom.sf(first - 1, first + second, 0.5))
        return np.where(p_value <= self.alpha, two.indices[:, 0].numpy(), ABSTAIN)

    @property
    def undefined(self) -> int:
        """How many of all draws had NaN among their logits: they count for no class."""
        return len(self.labels) * (self.n0 + self.n) - int(self.selection.sum() + self.counts.sum())

    @property
    def abstained(self) -> int:
        """Images without a certificate."""
        return int((self.predictions == ABSTAIN).sum())

    def certified_accuracy(self, radius: float) -> Estimate:
        """Share of images with the true class certified at `radius` or more, an abstention being wrong; Wilson interval
        over images.
        """
        return wilson(int(((self.predictions == self.labels.numpy()) & (self.radii >= radius)).sum()), len(self.labels))

    @property
    def accuracy(self) -> Estimate:
        """Of `smoothed`, an abstention being wrong; Wilson interval."""
        return wilson(int((self.smoothed == self.labels.numpy()).sum()), len(self.labels))

    @property
    def single(self) -> Estimate:
        """Mean over the `n` draws of the accuracy of one draw, which is what no certificate speaks of; bootstrap
        interval over images.
        """
        return bootstrap_mean((self.counts.gather(1, self.labels[:, None])[:, 0].double() / self.n).numpy())

    @property
    def average_radius(self) -> float:
        """Average certified radius: the mean over images of the radius where the true class is certified, 0 elsewhere
        (Zhai et al. 2020, arXiv 2001.02378).
        """
        return float(np.where(self.predictions == self.labels.numpy(), self.radii, 0.0).mean())

    @property
    def _chosen(self) -> np.ndarray:
        chosen: np.ndarray = self.selection.numpy().argmax(1)
        return chosen

    @staticmethod
    def join(parts: "list[Certification]") -> "Certification":
        """One certification of all images of `parts`, which share sigma, n0, n and alpha."""
        one = parts[0]
        return Certification(
            torch.cat([part.selection for part in parts]),
            torch.cat([part.counts for part in parts]),
            torch.cat([part.labels for part in parts]),
            one.sigma,
            one.n0,
            one.n,
            one.alpha,
            sum(part.seconds for part in parts),
            sum(part.network_evaluations for part in parts),
        )


def check_draws(n0: int, n: int, alpha: float) -> None:
    """Raises ValueError unless n0 and n are positive integers, alpha lies in (0, 1), and n draws can certify anything
    at that alpha.
    """
    for name, value in (("n0", n0), ("n", n)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), got {alpha}")
    if not alpha ** (1 / n) > 0.5:
        raise ValueError(
            f"n={n} draws can certify nothing at alpha={alpha:g}, even where they all agree: take at least"
            f" {int(np.log2(1 / alpha)) + 1}"
        )


@torch.no_grad()
def certify(
    model: Smoothed,
    x: Tensor,
    y: Tensor,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    seed: int = 0,
    *,
    image_ids: Tensor | None = None,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Certification:
    """Certifies every image; see the module for what that means.

    Args:
        model: one noisy draw, with the sigma of its noise: `purify.defences.smoothed.Smoothed` or `DenoisedSmoothing`.
        x: (images, c, h, w), floating point, in [0, 1].
        y: (images,) int64 labels. They do not enter a certificate, only the accuracies.
        n0: draws 0 .. n0 - 1 of an image's keys choose the class.
        n: draws n0 .. n0 + n - 1 estimate its probability.
        alpha: probability of a wrong certificate, for each image.
        seed: of all keys: the counts are a function of (seed, image id), up to rounding where two logits are all but
            equal.
        image_ids: (images,) int64, default 0 .. images - 1: identities of the images, for their keys.
        batch_size: noisy draws of one call of the model, of several images where they fit.
        progress: progress(done, total) in noisy draws.

    Raises:
        ValueError: bad images, labels or settings, or a model that is not `Smoothed`, before any work starts; labels
            that the model does not have.

    Warns (UserWarning) of batch norm or dropout in training mode: what depends on the other images of a batch is no
    classifier to certify.
    """
    if not isinstance(model, Smoothed):
        raise ValueError(
            "model must be purify.Smoothed or purify.DenoisedSmoothing, which know their sigma, got"
            f" {type(model).__name__}: wrap it"
        )
    check_inputs(x, y)
    check_draws(n0, n, alpha)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
    image_ids = (torch.arange(len(x)) if image_ids is None else image_ids).to(x.device)
    if image_ids.shape != (len(x),):
        raise ValueError(f"image_ids must have shape ({len(x)},), got {tuple(image_ids.shape)}")
    check_inference_mode(model)
    started, counts = time.monotonic(), None
    total = len(x) * (n0 + n)
    with count_network_evaluations(model) as evaluations, full_precision(x.device):
        for first in range(0, total, batch_size):
            flat = torch.arange(first, min(first + batch_size, total), device=x.device)
            image, draw = flat // (n0 + n), flat % (n0 + n)
            logits = model(x[image], keys=noise_keys(seed, image_ids[image], draw))
            if counts is None:
                _check_logits(logits, len(flat), int(y.max()))
                counts = torch.zeros(len(x), 2, logits.shape[1], dtype=torch.int64, device=x.device)
            _count(counts, image, (draw >= n0).long(), logits)
            if progress is not None:
                progress(first + len(flat), total)
        counted = counts.cpu()  # type: ignore[union-attr]
        spent = time.monotonic() - started
        return Certification(
            counted[:, 0].contiguous(),
            counted[:, 1].contiguous(),
            y.cpu(),
            model.sigma,
            n0,
            n,
            alpha,
            spent,
            evaluations(),
        )


def _count(counts: Tensor, image: Tensor, stage: Tensor, logits: Tensor) -> None:
    """Adds each draw's label to `counts` (images, stages, classes); a draw with NaN among its logits counts for no
    class.
    """
    defined = ~logits.isnan().any(1)
    place = (image * counts.shape[1] + stage) * counts.shape[2] + logits.nan_to_num(nan=0.0).argmax(1)
    counts.view(-1).index_add_(0, place, defined.long())


def _check_logits(logits: Tensor, rows: int, largest_label: int) -> None:
    if logits.ndim != 2 or len(logits) != rows or logits.shape[1] < 2:
        raise ValueError(
            f"the model must return logits of shape ({rows}, classes), at least two classes, got {tuple(logits.shape)}"
        )
    if largest_label >= logits.shape[1]:
        raise ValueError(f"the model has {logits.shape[1]} classes, the labels go up to {largest_label}")
