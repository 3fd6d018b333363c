import pytest
import torch
from torch import nn

from purify import DefendedClassifier, DiffPure, noise_keys
from purify.defences.votes import TIE, plurality
from purify.noise import Purpose, derive_keys

X = torch.rand(9, 1, 28, 28, generator=torch.Generator().manual_seed(0))
KEYS = noise_keys(0, torch.arange(9), 0)


@pytest.fixture
def defended(unet_score):
    torch.manual_seed(0)
    return DefendedClassifier(DiffPure(unet_score, 0.2, 5), nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))


def test_keys_make_a_result_independent_of_the_batch(defended):
    with torch.no_grad():
        whole = defended(X, keys=KEYS)
        for size in (1, 2, 7):
            parts = torch.cat([defended(x, keys=k) for x, k in zip(X.split(size), KEYS.split(size), strict=True)])
            torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
        shuffled = torch.tensor([3, 1, 8, 0, 2, 7, 5, 6, 4])
        torch.testing.assert_close(defended(X[shuffled], keys=KEYS[shuffled]), whole[shuffled], rtol=0, atol=1e-5)


def test_calls_without_keys_are_random_and_reproducible(defended, unet_score):
    with torch.no_grad():
        first, second = defended(X), defended(X)
        assert (first - second).abs().max() > 1e-3
        again = DefendedClassifier(DiffPure(unet_score, 0.2, 5), defended.classifier)
        assert torch.equal(again(X), first) and torch.equal(again(X), second)
        other_seed = DefendedClassifier(DiffPure(unet_score, 0.2, 5, seed=1), defended.classifier)
        assert (other_seed(X) - first).abs().max() > 1e-3


def test_fresh_randomness_is_independent_of_keyed_randomness(unet_score):
    """Row i of the n-th call without keys must not repeat draw n of image i under the same seed."""
    purifier = DiffPure(unet_score, 0.2, 1)
    with torch.no_grad():
        fresh = purifier(X)
        for draw in range(3):
            assert (fresh - purifier(X, noise_keys(0, torch.arange(9), draw))).flatten(1).abs().amax(1).min() > 1e-2


def test_precision_and_module_conversions(defended):
    double = defended.double()(X.double(), keys=KEYS)
    assert double.dtype == torch.float64
    single = defended.float()(X, keys=KEYS)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


def test_other_image_sizes(unet_score):
    purifier = DiffPure(unet_score, 0.1, 2)
    assert purifier(torch.rand(2, 1, 16, 40), KEYS[:2]).shape == (2, 1, 16, 40)


def test_plurality():
    votes = torch.tensor([[1, 1, 2], [2, 1, 0], [3, 3, 3], [0, 4, 4]])
    assert plurality(votes).tolist() == [1, TIE, 3, 4]


def test_predict_votes(defended):
    """predict is the plurality of single draws, keyed or not, and a tie is no label."""
    single = defended.predict(X, votes=1, keys=KEYS)
    assert single.shape == (9,) and single.dtype == torch.int64
    assert torch.equal(
        defended.predict(X, votes=5, keys=KEYS),
        torch.cat([defended.predict(X[i : i + 1], votes=5, keys=KEYS[i : i + 1]) for i in range(9)]),
    )

    class Alternating(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return nn.functional.one_hot(torch.full((len(x),), self.calls % 2), 3).float()

    assert DefendedClassifier(defended.purifier, Alternating()).predict(X, votes=2).tolist() == [TIE] * 9
    assert DefendedClassifier(defended.purifier, Alternating()).predict(X, votes=3).tolist() == [1] * 9
    with pytest.raises(ValueError, match="votes must be a positive integer, got 0"):
        defended.predict(X, votes=0)


def test_copies_are_averaged_with_keys_of_their_own(defended):
    """Logits, or the logarithm of mean probabilities; one copy is the plain model, bitwise."""
    singles = torch.stack([defended(X, derive_keys(KEYS, copy, 0, Purpose.COPY)) for copy in range(3)])
    logits = DefendedClassifier(defended.purifier, defended.classifier, copies=3)
    assert torch.equal(logits(X, KEYS), singles.mean(0))
    probabilities = DefendedClassifier(defended.purifier, defended.classifier, copies=3, average="probabilities")
    torch.testing.assert_close(probabilities(X, KEYS).exp(), singles.softmax(2).mean(0))
    for average in ("logits", "probabilities"):
        assert torch.equal(
            DefendedClassifier(defended.purifier, defended.classifier, 1, average)(X, KEYS), defended(X, KEYS)
        )
    torch.testing.assert_close(logits(X[2:4], KEYS[2:4]), logits(X, KEYS)[2:4], rtol=0, atol=1e-5)
    assert (logits(X) - logits(X)).abs().max() > 1e-4
    assert logits.predict(X, votes=3, keys=KEYS).shape == (9,)


def test_averages_vary_less(gaussian_score):
    torch.manual_seed(0)
    purifier, classifier = DiffPure(gaussian_score(), 0.2, 1), nn.Sequential(nn.Flatten(), nn.Linear(16, 10)).double()
    x, keys = torch.rand(1, 1, 4, 4, dtype=torch.float64).expand(400, 1, 4, 4), noise_keys(0, torch.arange(400), 0)
    with torch.no_grad():
        one, many = (
            DefendedClassifier(purifier, classifier, copies=copies)(x, keys).var(0).mean() for copies in (1, 8)
        )
    assert float(one / many) == pytest.approx(8, rel=0.2)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_gradient_through_copies_matches_finite_differences(defended, average):
    model = DefendedClassifier(defended.double().purifier, defended.classifier, copies=2, average=average)
    x, direction, h = (
        X.double().requires_grad_(),
        torch.randn(X.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
        1e-5,
    )
    slope = (torch.autograd.grad(model(x, KEYS)[:, 3].sum(), x)[0] * direction).sum()
    with torch.no_grad():
        difference = (model(x + h * direction, KEYS)[:, 3] - model(x - h * direction, KEYS)[:, 3]).sum() / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-7, atol=0)


def test_bad_arguments(defended):
    for arguments, message in (
        ({"copies": 0}, "copies must be a positive integer, got 0"),
        ({"copies": 2.0}, "copies must be a positive integer, got 2.0"),
        ({"average": "votes"}, "average='votes' is not one of logits, probabilities"),
    ):
        with pytest.raises(ValueError, match=message):
            DefendedClassifier(defended.purifier, defended.classifier, **arguments)
    with pytest.raises(ValueError, match="copies=2 has as many paths for an image, not one: give copies=1"):
        DefendedClassifier(defended.purifier, defended.classifier, copies=2).trajectory(X, KEYS)
    with pytest.raises(ValueError, match=r"keys must be int64 of shape \(9,\)"):
        DefendedClassifier(defended.purifier, defended.classifier, copies=2)(X, KEYS[:2])
