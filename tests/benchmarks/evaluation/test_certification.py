"""Certificates against closed forms: Clopper-Pearson, and a linear classifier whose smoothed version is known."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from benchmarks.evaluation.certification import ABSTAIN, Certification, certify, clopper_pearson_lower, radius_of
from purify import noise_keys
from purify.defences.smoothed import DenoisedSmoothing, Smoothed

SIGMA = 0.4
X = torch.rand(24, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
W = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)
BIAS = -0.3
MARGIN = (X.flatten(1) @ W + BIAS) / W.norm()  # signed distance to the plane
Y = (MARGIN > 0).long()


class Plane(nn.Module):
    """Two classes on the sides of (w, x) + bias = 0. Smoothed, it is the same classifier, with radius |(w, x) + bias| /
    |w| (Cohen et al. 2019).
    """

    def forward(self, x):
        z = x.flatten(1) @ W.to(x.dtype) + BIAS
        return torch.stack([-z, z], 1)


def certification(selection, counts, labels, n=1000, alpha=0.001, sigma=0.5):
    selection, counts = torch.tensor(selection), torch.tensor(counts)
    return Certification(selection, counts, torch.tensor(labels), sigma, 100, n, alpha, 0.0, 0)


def test_bound_in_closed_forms():
    for n in (1, 10, 100_000):
        for alpha in (0.001, 0.05):
            assert clopper_pearson_lower(np.array([0, n]), n, alpha) == pytest.approx([0, alpha ** (1 / n)], rel=1e-12)
            assert clopper_pearson_lower(np.array(1), n, alpha) == pytest.approx(1 - (1 - alpha) ** (1 / n), rel=1e-9)


@pytest.mark.parametrize(
    ("hits", "draws", "low"), [(5, 10, 0.1871), (8, 10, 0.4439), (1, 10, 0.0025), (81, 263, 0.2527)]
)
def test_bound_as_tabulated(hits, draws, low):
    """Lower ends of two-sided exact 95 % intervals, to four digits; 81 of 263 is Newcombe's (1998) example."""
    assert round(float(clopper_pearson_lower(np.array(hits), draws, 0.025)), 4) == low


def test_bound_solves_its_equation():
    hits = np.array([1, 37, 640, 999, 1000])
    bounds = clopper_pearson_lower(hits, 1000, 0.001)
    assert stats.binom.sf(hits - 1, 1000, bounds) == pytest.approx(0.001, rel=1e-8)
    assert (np.diff(clopper_pearson_lower(np.arange(1001), 1000, 0.001)) > 0).all()


@pytest.mark.parametrize("draws", [1, 2, 5, 20, 60])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
def test_bound_covers(draws, alpha):
    """Every outcome enumerated, its probability summed where the bound lies at or below the true p: at least 1 - alpha,
    for every p.
    """
    hits = np.arange(draws + 1)
    bounds = clopper_pearson_lower(hits, draws, alpha)
    for p in np.linspace(0, 1, 201):
        assert stats.binom.pmf(hits, draws, p)[bounds <= p + 1e-12].sum() >= 1 - alpha - 1e-12


def test_radius():
    assert radius_of(np.array([0.2, 0.5, stats.norm.cdf(1), stats.norm.cdf(2.5)]), 0.25) == pytest.approx(
        [0, 0, 0.25, 0.625], abs=1e-12
    )


def test_linear_classifier_is_certified_below_its_true_radius_and_close_to_it():
    """The bound's expected shortfall is Phi^-1's slope times the binomial's quantile: it shrinks like 1 / sqrt(n)."""
    true = MARGIN.abs().numpy()
    reachable = true < 2 * SIGMA
    assert reachable.sum() >= 20
    gaps = []
    for n in (300, 3_000, 30_000):
        result = certify(Smoothed(Plane(), SIGMA), X, Y, n0=50, n=n, alpha=1e-4, batch_size=50_000)
        assert (result.radii <= true).all()
        assert (
            set(result.predictions) <= {0, 1, ABSTAIN}
            and ((result.predictions == Y.numpy()) | (result.predictions == ABSTAIN)).all()
        )
        gaps.append((true - result.radii)[reachable].mean())
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    slope = (
        SIGMA
        * np.sqrt(stats.norm.cdf(true / SIGMA) * stats.norm.sf(true / SIGMA) / 30_000)
        / stats.norm.pdf(true / SIGMA)
    )
    expected = np.minimum(slope * stats.norm.isf(1e-4), true)
    assert gaps[2] == pytest.approx(expected[reachable].mean(), rel=0.15)


def test_a_tie_is_not_certified():
    """Images on the plane: each class has probability 1/2, so any certificate and any prediction would be wrong, and
    alpha allows about none.
    """
    near = 0.5 + 0.2 * (X - 0.5)
    on_plane = near - ((near.flatten(1) @ W + BIAS) / W.square().sum())[:, None, None, None] * W.reshape(1, 1, 2, 2)
    result = certify(Smoothed(Plane(), SIGMA), on_plane, Y, n0=50, n=1000)
    assert (result.predictions == ABSTAIN).all() and (result.radii == 0).all() and (result.smoothed == ABSTAIN).all()
    assert (
        result.abstained == 24
        and result.certified_accuracy(0).value == result.accuracy.value == result.average_radius == 0
    )


def test_wrong_certificates_are_as_rare_as_alpha_says():
    """A coin as base classifier at p = 0.49: the exact probability that n draws certify it, by enumeration, is at most
    alpha, and not far below.
    """
    hits = np.arange(1001)
    certified = clopper_pearson_lower(hits, 1000, 0.01) > 0.5
    assert stats.binom.pmf(hits, 1000, 0.5)[certified].sum() == pytest.approx(0.01, rel=0.25)
    assert stats.binom.pmf(hits, 1000, 0.49)[certified].sum() < 0.0025


def test_counts_do_not_depend_on_the_batch():
    smoothed = Smoothed(Plane(), SIGMA)
    whole = certify(smoothed, X, Y, n0=7, n=60, seed=3)
    assert (whole.selection.sum(1) == 7).all() and (whole.counts.sum(1) == 60).all() and whole.undefined == 0
    for batch_size in (1, 13, 67, 5000):
        part = certify(smoothed, X[:4], Y[:4], n0=7, n=60, seed=3, batch_size=batch_size)
        assert torch.equal(part.counts, whole.counts[:4]) and torch.equal(part.selection, whole.selection[:4])
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    shuffled = certify(smoothed, X[order], Y[order], n0=7, n=60, seed=3, image_ids=order)
    assert torch.equal(shuffled.counts, whole.counts[order])
    joined = Certification.join(
        [certify(smoothed, X[rows], Y[rows], n0=7, n=60, seed=3, image_ids=rows) for rows in torch.arange(24).split(10)]
    )
    assert torch.equal(joined.counts, whole.counts) and (joined.radii == whole.radii).all()
    assert not torch.equal(certify(smoothed, X, Y, n0=7, n=60, seed=4).counts, whole.counts)


def test_choice_and_estimate_have_draws_of_their_own():
    """Draw k of an image is the one of its k-th key: the first n0 choose, the next n count, and none does both."""
    smoothed = Smoothed(Plane(), SIGMA)
    labels = torch.stack([smoothed(X, keys=noise_keys(5, torch.arange(24), draw)).argmax(1) for draw in range(50)], 1)
    result = certify(smoothed, X, Y, n0=10, n=40, seed=5)
    assert torch.equal(result.selection[:, 1], labels[:, :10].sum(1)) and torch.equal(
        result.counts[:, 1], labels[:, 10:].sum(1)
    )


def test_the_choice_alone_names_the_class():
    """An image whose estimate favours another class than the choice: nothing is certified, and PREDICT, which looks at
    the estimate, names it.
    """
    result = certification([[60, 40, 0]], [[100, 900, 0]], [1])
    assert (
        result.hits.tolist() == [100] and result.predictions.tolist() == [ABSTAIN] and result.smoothed.tolist() == [1]
    )


def test_certified_accuracy_needs_the_true_class():
    counts = [[0, 1000], [1000, 0], [990, 10], [520, 480], [400, 600]]
    result = certification([[0, 100], [100, 0], [100, 0], [60, 40], [0, 100]], counts, [1, 1, 0, 0, 1])
    everything = 0.5 * stats.norm.ppf(0.001**0.001)
    assert result.largest_radius == pytest.approx(everything)
    assert result.predictions.tolist() == [1, 0, 0, ABSTAIN, 1]
    most = 0.5 * stats.norm.ppf(stats.beta.ppf(0.001, 990, 11))
    least = 0.5 * stats.norm.ppf(stats.beta.ppf(0.001, 600, 401))
    assert result.radii == pytest.approx([everything, everything, most, 0, least])
    values = [
        result.certified_accuracy(radius).value
        for radius in (0, least - 1e-9, least + 1e-9, most + 1e-9, everything - 1e-9, everything + 1e-9)
    ]
    assert values == pytest.approx([0.6, 0.6, 0.4, 0.2, 0.2, 0.0])
    assert result.average_radius == pytest.approx((everything + most + least) / 5)
    assert result.single.value == pytest.approx((1000 + 0 + 990 + 520 + 600) / 5000)


def test_the_curve_falls():
    result = certify(Smoothed(Plane(), SIGMA), X, Y, n0=50, n=1000)
    curve = [result.certified_accuracy(radius).value for radius in np.linspace(0, 2, 101)]
    assert curve[0] > 0.8 and curve[-1] == 0 and (np.diff(curve) <= 0).all()


def test_prediction_is_the_two_sided_test():
    """PREDICT against scipy's binomial test of the two most frequent classes."""
    counts = torch.distributions.Multinomial(200, torch.tensor([0.45, 0.35, 0.2])).sample((300,)).long()
    result = certification(torch.zeros_like(counts).tolist(), counts.tolist(), [0] * 300, n=200, alpha=0.05)
    for row, label in zip(counts, result.smoothed, strict=True):
        (first, second), (one, _) = row.topk(2)
        assert label == (int(one) if stats.binomtest(int(first), int(first + second), 0.5).pvalue <= 0.05 else ABSTAIN)
    assert 0 < (result.smoothed == ABSTAIN).sum() < 300


def test_draws_with_nan_count_for_no_class():
    class Broken(nn.Module):
        def forward(self, x):
            logits = Plane()(x)
            return torch.where(x[:, :1, 0, 0] > 0.9, torch.nan, logits)

    smoothed = Smoothed(Broken(), SIGMA)
    result = certify(smoothed, X, Y, n0=20, n=200)
    broken = sum(
        int(smoothed(X, keys=noise_keys(0, torch.arange(24), draw)).isnan().any(1).sum()) for draw in range(220)
    )
    assert result.undefined == broken > 0
    fewer = Certification(
        result.selection, result.counts, result.labels, SIGMA, 20, int(result.counts[0].sum()), 0.001, 0.0, 0
    )
    assert result.lower_bounds[0] < fewer.lower_bounds[0]  # of all draws, not of those that are left


def test_cost_and_progress(gaussian_score):
    model = DenoisedSmoothing(gaussian_score(), nn.Sequential(nn.Flatten(), Plane()), 0.25)
    seen = []
    result = certify(model, X[:3], Y[:3], n0=5, n=20, batch_size=32, progress=lambda *at: seen.append(at))
    assert result.network_evaluations == 75 and result.seconds > 0 and result.sigma == 0.25
    assert seen == [(32, 75), (64, 75), (75, 75)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"model": Plane()},
            "model must be purify.Smoothed or purify.DenoisedSmoothing, which know their sigma, got Plane",
        ),
        ({"x": 2 * X}, r"x must lie in \[0, 1\]"),
        ({"y": Y + 1}, "the model has 2 classes, the labels go up to 2"),
        ({"y": Y[:3]}, "y must be int64 labels"),
        ({"n0": 0}, "n0 must be a positive integer, got 0"),
        ({"n": 2.5}, "n must be a positive integer, got 2.5"),
        ({"n": 9}, "n=9 draws can certify nothing at alpha=0.001, even where they all agree: take at least 10"),
        ({"alpha": 0.0}, r"alpha must lie in \(0, 1\), got 0"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"image_ids": torch.arange(3)}, r"image_ids must have shape \(24,\)"),
        (
            {"model": Smoothed(lambda x: x.flatten(1)[:, :1], 0.3)},
            r"logits of shape \(256, classes\), at least two classes, got \(256, 1\)",
        ),
    ],
)
def test_bad_input(arguments, message):
    given = {"model": Smoothed(Plane(), SIGMA), "x": X, "y": Y, "n": 20} | arguments
    with pytest.raises(ValueError, match=message):
        certify(**given)


def test_training_mode_is_warned_of():
    model = Smoothed(nn.Sequential(nn.Dropout2d(), nn.Flatten(), nn.Linear(4, 2).double()), SIGMA)
    with pytest.warns(UserWarning, match="in training mode"):
        certify(model, X, Y, n0=1, n=10)


def test_ten_draws_are_enough_for_a_certificate():
    """0.001^(1/10) is just above 1/2."""
    assert math.isclose(float(clopper_pearson_lower(np.array(10), 10, 0.001)), 0.501187, rel_tol=1e-6)
    everything_one = Smoothed(lambda x: torch.tensor([[0.0, 1.0]]).expand(len(x), 2), SIGMA)
    result = certify(everything_one, X, torch.ones(24, dtype=torch.int64), n0=1, n=10)
    assert result.certified_accuracy(0).value == 1 and result.radii == pytest.approx(
        SIGMA * stats.norm.ppf(0.501187), rel=1e-3
    )
