import warnings

import pytest
import torch
from torch import nn

from attacks import L2, PGD, Linf
from attacks.eot import Expectation
from attacks.losses import cross_entropy, margin
from attacks.randomness import mix


class Linear(nn.Module):
    """Two classes, logit difference w . x + b: the optimal perturbation is known."""

    def __init__(self, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = scale * torch.randn(1, 3, 6, 6, generator=generator, dtype=torch.float64)

    def forward(self, x):
        z = ((x - 0.5) * self.w).sum((1, 2, 3))
        return torch.stack([-z, z], 1) / 2


class Noisy(nn.Module):
    """Linear, plus noise on the input that is a function of the keys: the mean gradient is the linear one."""

    def __init__(self, scale=3.0):
        super().__init__()
        self.linear = Linear()
        self.scale = scale
        self.seen = []

    def forward(self, x, keys=None):
        self.seen.append(keys)
        noise = torch.stack([torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(int(k) % 2**63), dtype=x.dtype) for k in keys])
        return self.linear(x) + self.scale * torch.einsum("bchw,bchw->b", x, noise)[:, None] * torch.tensor([-0.5, 0.5], dtype=x.dtype)


X = 0.5 + 0.05 * torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = Linear()(X).argmax(1)


def test_linf_reaches_the_optimum_of_a_linear_model():
    """The worst logit difference under Linf is |w . x| - epsilon |w|_1: every pixel moves by epsilon against the sign."""
    model, x_adv = Linear(), PGD(Linf(0.03), steps=10)(Linear(), X, Y)
    optimum = margin(model(X), Y) + 0.03 * model.w.abs().sum()
    torch.testing.assert_close(margin(model(x_adv), Y), optimum.expand(6), rtol=1e-9, atol=0)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_l2_reaches_the_optimum_of_a_linear_model(loss):
    # Steps of epsilon/2 turn the random start's sideways part to the optimum; the default travels 2.5 epsilon in all, which leaves 1 % of it.
    model, x_adv = Linear(), PGD(L2(0.2), steps=40, step_size=0.1, loss=loss)(Linear(), X, Y)
    optimum = margin(model(X), Y) + 0.2 * model.w.norm()
    assert ((margin(model(x_adv), Y) - margin(model(X), Y)) / (optimum - margin(model(X), Y)) > 0.999).all()


def test_linf_optimum_with_the_image_box():
    """Near the border a pixel can only move as far as the box allows."""
    x = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[x < 0.2], x[x > 0.8] = 0.0, 1.0
    model = Linear()
    y = model(x).argmax(1)
    toward = torch.where((y == 1)[:, None, None, None], -1.0, 1.0) * model.w.sign()
    best = (x + 0.1 * toward).clamp(0, 1)
    x_adv = PGD(Linf(0.1), steps=20)(model, x, y)
    torch.testing.assert_close(x_adv, best, rtol=0, atol=1e-9)


def test_eot_gradient_is_the_mean_over_draws():
    """Against a plain loop over the same keys, whatever the size of the calls."""
    model, keys = Noisy(), torch.arange(6)
    expected = torch.zeros_like(X)
    for draw in range(5):
        x = X.clone().requires_grad_()
        expected += torch.autograd.grad(cross_entropy(model(x, keys=mix(keys, draw)), Y).sum(), x)[0] / 5
    for batch_size in (1, 4, 1000):
        gradient, mean, _ = Expectation(model, Y, 5, batch_size).gradient(X, keys, cross_entropy)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
        assert mean.shape == (6,)


def test_more_draws_find_more_of_the_optimum():
    """With noise larger than the signal, one draw steps at random; many draws average it out."""
    optimum = 0.02 * Linear().w.abs().sum()
    reached = []
    for eot in (1, 64):
        x_adv = PGD(Linf(0.02), steps=10, eot=eot, loss="margin")(Noisy(), X, Y)
        reached.append(((margin(Linear()(x_adv), Y) - margin(Linear()(X), Y)) / optimum).mean().item())
    assert reached[0] < 0.7 and reached[1] > 0.9


def test_draws_are_all_different():
    model = Noisy()
    PGD(Linf(0.02), steps=3, eot=4, restarts=2)(model, X, Y, keys=torch.arange(6))
    used = torch.cat(model.seen)
    assert len(used) == 6 * 4 * (2 * 3 + 2)  # two restarts of three steps, and the draws that choose between them
    assert len(used.unique()) == len(used)
    assert not set(used.tolist()) & set(range(6))


def test_result_depends_on_keys_not_on_the_batch():
    model, keys = Noisy(), torch.arange(6) + 100
    attack = PGD(Linf(0.02), steps=3, eot=2, restarts=2, batch_size=5)
    whole = attack(model, X, Y, keys=keys)
    for i in range(6):
        torch.testing.assert_close(attack(model, X[i : i + 1], Y[i : i + 1], keys=keys[i : i + 1]), whole[i : i + 1])
    assert not torch.equal(attack(model, X, Y, keys=keys + 1), whole)


def test_restarts_keep_the_best_of_each_image():
    """On a model with a bad local optimum, several random starts do at least as well on every image, and better on some."""

    class Wavy(nn.Module):
        def forward(self, x):
            z = torch.sin(40 * x).sum((1, 2, 3))
            return torch.stack([-z, z], 1)

    x = torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = Wavy()(x).argmax(1)
    one, many = (margin(Wavy()(PGD(Linf(0.2), steps=10, restarts=r, loss="margin")(Wavy(), x, y)), y) for r in (1, 8))
    assert (many >= one - 1e-9).all() and (many > one + 0.1).any()


def test_dead_gradients_are_reported():
    class Detached(Linear):
        def forward(self, x):
            return super().forward(x.detach()) + 0 * x.sum()

    with pytest.warns(UserWarning, match="gradient was exactly zero for 6 of 6 images, in up to 2 of 2 steps"):
        PGD(Linf(0.1), steps=2)(Detached(), X, Y)


def test_gradients_that_break_later_are_reported_too():
    class Breaking(Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * (torch.nan if self.calls > 2 else 1.0)

    with pytest.warns(UserWarning, match="gradient was NaN or infinite for 6 of 6 images, in up to 3 of 5 steps"):
        PGD(Linf(0.1), steps=5)(Breaking(), X, Y)


def test_healthy_gradients_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGD(Linf(0.1), steps=2)(Linear(), X, Y)


def test_parameters_get_no_gradient():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).double()
    PGD(Linf(0.1), steps=2)(model, X, Y)
    assert all(p.grad is None for p in model.parameters())


def test_progress_counts_gradients():
    seen = []
    PGD(Linf(0.1), steps=3, restarts=2)(Linear(), X, Y, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"eot": 0}, "eot must be a positive integer, got 0"),
        ({"loss": "cw"}, "loss='cw' is not one of ce, margin, dlr"),
        ({"step_size": 0.0}, "step_size must be positive, got 0.0"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        PGD(Linf(0.1), **arguments)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X + 1, Y, r"x must lie in \[0, 1\], got values in"),
        (X - 1, Y, r"x must lie in \[0, 1\], got values in"),
        (X.where(X > X.amin(), torch.nan), Y, "x holds NaN or infinity in 1 of 6 images"),
        (X[0], Y, r"shape \(b, c, h, w\), got torch.float64 of shape \(3, 6, 6\)"),
        (X[:0], Y[:0], "x holds no images"),
        (X, Y[:2], r"y must be int64 labels of shape \(6,\), got torch.int64 of shape \(2,\)"),
        (X, Y.float(), "y must be int64 labels"),
        (X, Y - 2, "y must hold class indices from 0"),
    ],
)
def test_bad_inputs(x, y, message):
    with pytest.raises(ValueError, match=message):
        PGD(Linf(0.1))(Linear(), x, y)
