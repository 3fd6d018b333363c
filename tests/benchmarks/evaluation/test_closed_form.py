"""The whole path on a case with a known answer: a linear classifier behind the purifier of correlated Gaussian data.

The purifier maps x to J x + c + noise with a symmetric matrix J, so a linear logit difference (w, x) is normal with
mean (J w, x), and under Linf the best attack moves every pixel by epsilon against the sign of J w: clean and robust
accuracy of one draw are normal probabilities. The data are so correlated that J w and w differ in sign at many pixels:
an attack without the purifier's true gradient misses the optimum.
"""

import math

import pytest
import torch
from torch import nn

from attacks import PGD, Linf
from benchmarks.evaluation import evaluate
from purify import DefendedClassifier, DiffPure, FixedRandomness, ScoreModel
from purify.noise import Purpose, derive_keys
from purify.schedules import LinearVP
from purify.solvers.grids import time_grid

T_STAR, STEPS, EPSILON, SHAPE, IMAGES, DRAWS = 0.3, 8, 0.02, (1, 6, 6), 400, 8
STD = torch.logspace(-1.5, 0.3, 36, dtype=torch.float64)
BASIS = torch.linalg.qr(torch.randn(36, 36, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]


class CorrelatedGaussianNoise(nn.Module):
    """E[n | x_t] for data N(0, BASIS diag(STD^2) BASIS^T)."""

    def forward(self, x, t):
        alpha, sigma = LinearVP().alpha(t)[:, None], LinearVP().sigma(t)[:, None]
        return ((x.flatten(1) @ BASIS) * sigma / (alpha**2 * STD**2 + sigma**2) @ BASIS.T).reshape(x.shape)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.randn(36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def forward(self, x):
        z = (x - 0.5).flatten(1) @ self.w
        return torch.stack([-z, z], 1) / 2


def jacobian_and_covariance():
    """Of the discrete Euler path on [-1, 1], step by step along each principal direction."""
    schedule = LinearVP()
    gain, variance = schedule.alpha(T_STAR), schedule.sigma(T_STAR) ** 2 * torch.ones_like(STD)
    times = time_grid(T_STAR, 1e-5, STEPS)
    for t, s in zip(times[:-1], times[1:], strict=True):
        dt, g2 = s - t, schedule.diffusion(t) ** 2
        a = 1 + dt * (schedule.drift(t) + g2 / (schedule.alpha(t) ** 2 * STD**2 + schedule.sigma(t) ** 2))
        gain, variance = a * gain, a**2 * variance - g2 * dt
    return BASIS @ torch.diag(gain) @ BASIS.T, BASIS @ torch.diag(variance) @ BASIS.T


def majority_probability(p):
    """Probability that more than half of DRAWS independent draws are right."""
    return sum(math.comb(DRAWS, k) * p**k * (1 - p) ** (DRAWS - k) for k in range(DRAWS // 2 + 1, DRAWS + 1))


def images_and_labels(effective):
    """Every image far enough inside [0, 1], with the label that the defended model gives it without noise."""
    x = (0.5 + 0.15 * torch.randn(IMAGES, 36, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).clamp(
        EPSILON, 1 - EPSILON
    )
    return x, ((x - 0.5) @ effective > 0).long()


def defence(gradient="exact"):
    return DefendedClassifier(
        DiffPure(ScoreModel(CorrelatedGaussianNoise(), LinearVP(), "noise"), T_STAR, STEPS, gradient), Linear()
    )


@pytest.mark.parametrize("gradient", [None, "exact", "backprop", "bpda"])
def test_accuracy_equals_the_closed_form(gradient):
    """Clean, under the optimal attack, and under the one that takes the purifier for the identity, which is known too
    and weaker.
    """
    jacobian, covariance = jacobian_and_covariance()
    w = Linear().w
    effective = jacobian @ w
    assert 0.2 < (w.sign() != effective.sign()).double().mean() < 0.8

    x, y = images_and_labels(effective)
    loss = {None: 0.0, "bpda": w.sign() @ effective}.get(gradient, effective.abs().sum())
    margins = ((x - 0.5) @ effective) * (2 * y - 1) - EPSILON * loss
    # the noise lives on [-1, 1], twice as wide
    right = torch.special.ndtr(margins / (w @ covariance @ w / 4).sqrt()).tolist()

    attack = PGD(Linf(EPSILON), steps=10, loss="margin") if gradient else None
    result = evaluate(defence(gradient or "exact"), x.reshape(-1, *SHAPE), y, attack, draws=DRAWS)

    def agrees(value, probabilities, per_image):
        deviation = math.sqrt(sum(p * (1 - p) for p in probabilities) / per_image) / IMAGES
        assert value == pytest.approx(sum(probabilities) / IMAGES, abs=4 * deviation)

    agrees(result.single.value, right, DRAWS)
    agrees(result.worst_of[DRAWS].value, [p**DRAWS for p in right], 1)
    agrees(result.majority[DRAWS].value, [majority_probability(p) for p in right], 1)
    assert 0.05 < result.single.value < 0.98  # a case where both ends would be trivial shows nothing


def test_fixed_randomness_equals_the_closed_form_image_by_image():
    """With the noise known there is nothing random left: the optimal attack lowers every clean margin by epsilon |J
    w|_1, no more and no less.
    """
    jacobian, _ = jacobian_and_covariance()
    effective = jacobian @ Linear().w
    x, y = images_and_labels(effective)
    x, draws = x.reshape(-1, *SHAPE), 3
    attacked = evaluate(defence(), x, y, PGD(Linf(EPSILON), steps=10, loss="margin"), draws=draws, randomness="fixed")
    for draw in range(draws):
        key = int(derive_keys(torch.zeros(1, dtype=torch.int64), draw, 0, Purpose.FIXED))
        logits = FixedRandomness(defence(), key)(x).detach()
        margins = (logits[:, 1] - logits[:, 0]) * (2 * y - 1) - EPSILON * effective.abs().sum()
        clear = margins.abs() > 1e-9
        assert clear.double().mean() > 0.99
        assert torch.equal(attacked.right[clear, draw], margins[clear] > 0)
    assert 0.05 < attacked.single.value < 0.95
