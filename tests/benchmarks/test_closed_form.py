"""The whole path on a case with a known answer: a linear classifier behind the purifier of Gaussian data.

The purifier maps x to a x + c + s z with z ~ N(0, I), so a linear logit difference is normal, and under Linf the best attack moves every pixel
by epsilon: clean and robust accuracy of one draw are normal probabilities.
"""

import math

import pytest
import torch
from torch import nn

from attacks import PGD, Linf
from benchmarks import evaluate
from purify import DefendedClassifier, DiffPure
from purify.sde import time_grid

T_STAR, STEPS, STD, EPSILON, SHAPE, IMAGES, DRAWS = 0.3, 8, 0.5, 0.02, (1, 6, 6), 400, 8


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def forward(self, x):
        z = ((x - 0.5) * self.w).sum((1, 2, 3))
        return torch.stack([-z, z], 1) / 2


def gain_and_spread(schedule):
    """(a, s) of the discrete Euler path, on [-1, 1]; the mean of the data is 0, so there is no offset."""
    gain, variance = schedule.alpha(T_STAR), schedule.sigma(T_STAR) ** 2
    times = time_grid(T_STAR, 1e-5, STEPS)
    for t, s in zip(times[:-1], times[1:], strict=True):
        dt, g2 = s - t, schedule.diffusion(t) ** 2
        a = 1 + dt * (schedule.drift(t) + g2 / (schedule.alpha(t) ** 2 * STD**2 + schedule.sigma(t) ** 2))
        gain, variance = a * gain, a**2 * variance - g2 * dt
    return gain, math.sqrt(variance)


def binomial_sum_probability(p):
    """Probability that more than half of DRAWS independent draws are right."""
    return sum(math.comb(DRAWS, k) * p**k * (1 - p) ** (DRAWS - k) for k in range(DRAWS // 2 + 1, DRAWS + 1))


@pytest.mark.parametrize("attacked", [False, True])
def test_accuracy_equals_the_closed_form(gaussian_score, attacked):
    score, classifier = gaussian_score(0.0, STD), Linear()
    gain, spread = gain_and_spread(score.schedule)
    x = (0.5 + 0.08 * torch.randn(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).clamp(EPSILON, 1 - EPSILON)
    y = classifier(x).argmax(1)

    # On [0, 1]: the purified logit difference is gain (w, x - 0.5) + spread/2 (w, z); the label's sign makes it a margin.
    margins = (classifier(x)[:, 1] - classifier(x)[:, 0]) * (2 * y - 1)
    if attacked:
        margins = margins - EPSILON * classifier.w.abs().sum()
    right = torch.special.ndtr(gain * margins / (spread / 2 * classifier.w.norm())).tolist()

    attack = PGD(Linf(EPSILON), steps=10, eot=4, loss="margin") if attacked else None
    result = evaluate(DefendedClassifier(DiffPure(score, T_STAR, STEPS), classifier), x, y, attack, draws=DRAWS)

    def within(value, probabilities, per_image):
        deviation = math.sqrt(sum(p * (1 - p) for p in probabilities) / per_image) / IMAGES
        assert value == pytest.approx(sum(probabilities) / IMAGES, abs=4 * deviation)

    within(result.single.value, right, DRAWS)
    within(result.worst_of[DRAWS].value, [p**DRAWS for p in right], 1)
    within(result.majority[DRAWS].value, [binomial_sum_probability(p) for p in right], 1)
    assert 0.05 < result.single.value < 0.98  # a case where both ends would be trivial shows nothing
