import numpy as np
import pytest
from scipy import stats

from benchmarks.evaluation.statistics import bootstrap_mean, paired_difference, wilson


@pytest.mark.parametrize(("right", "total"), [(0, 10), (3, 10), (10, 10), (45, 64), (900, 1000)])
def test_wilson_equals_scipy(right, total):
    expected = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert wilson(right, total).ci95 == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    """200 data sets of 100 images with accuracies in {0, 1/4, ..., 1}: about 95 % of the intervals hold the
    true mean.
    """
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_mean(rng.binomial(4, 0.6, 100) / 4, seed).ci95
        hits += low <= 0.6 <= high
    assert 181 <= hits <= 198  # binomial(200, 0.95), two sides of 0.1 % each


def test_bootstrap_of_unanimous_images_does_not_claim_certainty():
    assert bootstrap_mean(np.ones(20)).ci95 == wilson(20, 20).ci95
    assert bootstrap_mean(np.zeros(20)).ci95 == wilson(0, 20).ci95
    assert bootstrap_mean(np.full(20, 0.5)).ci95 == wilson(10, 20).ci95


def test_paired_difference():
    rng = np.random.default_rng(1)
    base = rng.binomial(8, 0.5, 200) / 8
    same = paired_difference(base, base)
    assert (same.value, same.p_value) == (0.0, 1.0)
    lower = np.clip(base - 0.1 * rng.binomial(1, 0.5, 200), 0, 1)
    drop = paired_difference(lower, base)
    assert drop.value == pytest.approx((lower - base).mean())
    assert drop.ci95[0] < drop.value < drop.ci95[1] < 0
    assert drop.p_value < 1e-3


@pytest.mark.parametrize(
    ("first", "expected"), [(0.5, (-0.30850, 0.30850)), (1.0, (0.19150, 0.5 + 0.30850)), (0.0, (-0.80850, -0.19150))]
)
def test_difference_of_unanimous_images_does_not_claim_certainty(first, expected):
    """10 images without an exception leave 30.85 % to images that were not seen: scipy's exact bound for 0 of 10."""
    assert stats.binomtest(0, 10).proportion_ci(0.95, method="exact").high == pytest.approx(0.30850, abs=1e-5)
    assert paired_difference(np.full(10, first), np.full(10, 0.5)).ci95 == pytest.approx(expected, abs=1e-5)


def test_differences_stay_in_their_range():
    assert paired_difference(np.ones(10), np.zeros(10)).ci95 == pytest.approx((0.69150, 1), abs=1e-5)
    assert paired_difference(np.zeros(1), np.zeros(1)).ci95 == pytest.approx((-0.975, 0.975))


def test_sign_flip_test_equals_the_exact_test_on_a_small_case():
    """Five differences of +1: only all-plus and all-minus of 32 sign patterns are as extreme, p = 2/32."""
    result = paired_difference(np.ones(5), np.zeros(5))
    assert result.p_value == pytest.approx(2 / 32, abs=0.01)


def test_paired_values_need_the_same_images():
    with pytest.raises(ValueError, match="same images"):
        paired_difference(np.zeros(3), np.zeros(4))
