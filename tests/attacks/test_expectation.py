"""The mean over draws of a model's gradient: what it is, how it fits into memory, and what it costs."""

import pytest
import torch
from attack_models import Linear, NoisyGradient, images

from attacks import PGD, Linf, count_cost
from attacks.expectation import Expectation
from attacks.losses import cross_entropy, margin
from attacks.randomness import mix

X = images()
Y = Linear()(X).argmax(1)


def test_eot_gradient_is_the_mean_over_draws():
    """Against a plain loop over the same keys, whatever the size of the calls."""
    model, keys = NoisyGradient(), torch.arange(6)
    expected = torch.zeros_like(X)
    for draw in range(5):
        x = X.clone().requires_grad_()
        expected += torch.autograd.grad(cross_entropy(model(x, keys=mix(keys, draw)), Y).sum(), x)[0] / 5
    for batch_size in (1, 4, 1000):
        gradient, mean, _ = Expectation(model, Y, 5, batch_size).gradient(X, keys, cross_entropy)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
        assert mean.shape == (6,)


@pytest.mark.parametrize("draws", range(1, 41))
def test_a_share_of_all_draws_is_one(draws):
    """Whatever the size of the calls: sums of 1 / draws would round to less or more."""
    for batch_size in (1, 3, 100):
        expectation = Expectation(Linear(), 1 - Y[:1], draws, batch_size)
        x, keys = X[:1].float(), torch.arange(1)
        assert float(expectation.gradient(x, keys, margin)[2]) == float(expectation.success(x, keys)) == 1


class Small(NoisyGradient):
    """Runs out of memory above so many rows."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows
        self.sizes = []

    def forward(self, x, keys=None):
        self.sizes.append(len(x))
        if len(x) > self.rows:
            raise torch.OutOfMemoryError(f"{len(x)} rows do not fit")
        return super().forward(x, keys)


@pytest.mark.parametrize("rows", [1, 2, 5, 13])
def test_calls_that_run_out_of_memory_are_halved(rows):
    attack, keys = PGD(Linf(0.02), steps=3, eot=7, restarts=2), torch.arange(6)
    model = Small(rows)
    with count_cost() as cost:
        x_adv = attack(model, X, Y, keys)
    torch.testing.assert_close(x_adv, attack(NoisyGradient(), X, Y, keys))
    failed = [size for size in model.sizes if size > rows]
    assert failed == sorted(failed, reverse=True) and failed[0] == 42
    # and never tried again
    assert len(failed) <= 6 and all(size <= rows for size in model.sizes[model.sizes.index(failed[-1]) + 1 :])
    assert cost.forward == sum(size for size in model.sizes if size <= rows) == 6 * 7 * (2 * 3 + 2)
    assert cost.backward == 6 * 7 * 2 * 3


def test_memory_found_too_small_is_remembered_for_the_model():
    model = Small(5)
    for _ in range(2):
        PGD(Linf(0.02), steps=1, eot=7)(model, X, Y)
    tries = [size for size in model.sizes if size > 5]
    assert len(tries) == len(set(tries)) and Small(5).sizes == []


def test_one_row_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError, match="1 rows do not fit"):
        PGD(Linf(0.02), steps=1)(Small(0), X, Y)


def test_other_errors_of_the_model_pass():
    class Wrong(Linear):
        def forward(self, x):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        PGD(Linf(0.02), steps=1)(Wrong(), X, Y)


def test_counts_of_cost_nest():
    attack = PGD(Linf(0.02), steps=3, eot=2)
    with count_cost() as whole:
        attack(NoisyGradient(), X, Y)
        with count_cost() as part:
            attack(NoisyGradient(), X[:1], Y[:1])
    attack(NoisyGradient(), X, Y)
    assert (part.forward, part.backward) == (6, 6) and (whole.forward, whole.backward) == (42, 42)
