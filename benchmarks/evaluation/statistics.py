"""Intervals and paired comparisons of accuracies."""

import math
from dataclasses import dataclass

import numpy as np

_Z95 = 1.959963984540054
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """An accuracy in [0, 1] with its 95 % interval over images."""

    value: float
    ci95: tuple[float, float]

    def as_dict(self) -> dict[str, object]:
        return {"value": self.value, "ci95": list(self.ci95)}

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.ci95[0]:.1f}, {100 * self.ci95[1]:.1f}]"


def wilson(right: float, total: int) -> Estimate:
    """A proportion with Wilson's score interval (1927)."""
    p, z2 = right / total, _Z95**2
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    return Estimate(p, (max(0.0, centre - half), min(1.0, centre + half)))


def bootstrap_mean(values: np.ndarray, seed: int = 0) -> Estimate:
    """The mean of per-image accuracies (n,) in [0, 1] with a percentile bootstrap interval over images.

    Where all images agree the bootstrap has no spread and would claim certainty; Wilson's interval is given there.
    """
    mean = float(values.mean())
    if (values == values[0]).all():
        return wilson(mean * len(values), len(values))
    means = _resampled_means(values, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(mean, (float(low), float(high)))


@dataclass(frozen=True)
class PairedDifference:
    """Mean of per-image differences, its 95 % interval, and the p-value of a two-sided sign-flip test (differences
    symmetric about 0).
    """

    value: float
    ci95: tuple[float, float]
    p_value: float

    def as_dict(self) -> dict[str, object]:
        return {"value": self.value, "ci95": list(self.ci95), "p_value": self.p_value}


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int = 0) -> PairedDifference:
    """first - second for per-image accuracies (n,) in [0, 1] of the same images; the interval is a percentile bootstrap
    over images.

    Where all differences are equal the bootstrap has no spread and would claim certainty. A kind of image that n images
    do not show may still be a share of up to 1 - 0.025^(1/n) of all (Clopper-Pearson's bound for no success, 1934): the
    interval is that much to both sides, within [-1, 1].

    Raises:
        ValueError: arrays of different shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired values need the same images, got {first.shape} and {second.shape}")
    differences = first - second
    low, high = (
        _unseen(differences)
        if (differences == differences[0]).all()
        else np.quantile(_resampled_means(differences, seed), [0.025, 0.975])
    )
    null = np.abs(_sign_flipped_means(differences, seed + 1))
    observed = abs(differences.mean())
    p_value = (1 + int((null >= observed - 1e-12).sum())) / (1 + _RESAMPLES)
    return PairedDifference(float(differences.mean()), (float(low), float(high)), p_value)


def _unseen(equal: np.ndarray) -> tuple[float, float]:
    """The interval of equal differences (n,)."""
    share = 1 - 0.025 ** (1 / len(equal))
    return max(-1.0, float(equal[0]) - share), min(1.0, float(equal[0]) + share)


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Means of resamples with replacement. Few distinct values occur, so their counts are drawn: memory does not grow
    with the images.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=_RESAMPLES)
    means: np.ndarray = drawn @ distinct / len(values)
    return means


def _sign_flipped_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Means after flipping each value's sign with probability 1/2: of the images that share a value, a binomial number
    keeps it.
    """
    distinct, counts = np.unique(values, return_counts=True)
    kept = np.random.default_rng(seed).binomial(counts, 0.5, size=(_RESAMPLES, len(counts)))
    means: np.ndarray = (2 * kept - counts) @ distinct / len(values)
    return means
