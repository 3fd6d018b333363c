import pytest
import torch
from torch import nn

from purify import DefendedClassifier, DiffPure, noise_keys
from purify.defense import TIE, plurality

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
    assert torch.equal(defended.predict(X, votes=5, keys=KEYS), torch.cat([defended.predict(X[i : i + 1], votes=5, keys=KEYS[i : i + 1]) for i in range(9)]))

    class Alternating(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return nn.functional.one_hot(torch.full((len(x),), self.calls % 2), 3).float()

    assert DefendedClassifier(defended.purifier, Alternating()).predict(X, votes=2).tolist() == [TIE] * 9
    assert DefendedClassifier(defended.purifier, Alternating()).predict(X, votes=3).tolist() == [1] * 9
    with pytest.raises(ValueError, match="votes must be a positive integer, got 0"):
        defended.predict(X, votes=0)
