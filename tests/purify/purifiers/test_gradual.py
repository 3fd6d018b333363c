"""Gradual noise scheduling against DDPM's equations, and the published stages."""

import pytest
import torch

from purify import Gradual, ScoreModel, noise_keys
from purify.networks.gaussian import GaussianNoise
from purify.noise import Purpose, Stage, derive_keys, standard_normal
from purify.schedules import EDM, DiscreteVP

KEYS = noise_keys(0, torch.arange(3), 0)
X = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_stages_are_the_equations_of_ddpm(gaussian_score):
    """On the chain itself, in DDPM's own terms: abar, the posterior mean of x_0, and eq. 6 and 7 of Ho et al.
    (2020).
    """
    chain = DiscreteVP.linear()
    score = ScoreModel(GaussianNoise(chain, 0.2, 0.5), chain, "noise")
    abar = torch.cumprod(1 - torch.tensor(chain.betas, dtype=torch.float64), 0)
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    state = 2 * x - 1
    for stage, (level, stride) in enumerate([(6, 1), (10, 5)]):
        keys = derive_keys(KEYS, stage, 0, Purpose.ROUND)
        noise = standard_normal(keys, Stage.FORWARD, 0, (1, 4, 4), torch.float64)
        state = abar[level - 1].sqrt() * state + (1 - abar[level - 1]).sqrt() * noise
        for index, k in enumerate(range(level, 0, -stride)):
            now, before = abar[k - 1], abar[k - 1 - stride] if k > stride else torch.tensor(1.0, dtype=torch.float64)
            beta = 1 - now / before
            x0 = 0.2 + now.sqrt() * 0.25 / (now * 0.25 + 1 - now) * (state - now.sqrt() * 0.2)
            mean = before.sqrt() * beta / (1 - now) * x0 + (now / before).sqrt() * (1 - before) / (1 - now) * state
            z = standard_normal(keys, Stage.INCREMENT, index, (1, 4, 4), torch.float64)
            state = mean + (beta * (1 - before) / (1 - now)).sqrt() * z
    torch.testing.assert_close(Gradual(score, (6, 10), (6, 2))(x, KEYS), (state + 1) / 2, rtol=0, atol=1e-10)


def test_published_defaults(unet_score):
    purifier = Gradual(unet_score)
    assert purifier.stages == purifier.steps == (30, 30, 30, 30, 50, 50, 125, 125) and sum(purifier.steps) == 470
    for stage, inner in zip(purifier.stages, purifier.purifiers, strict=True):
        times = inner.path(2 * X - 1, KEYS).times
        assert times == tuple((stage - i) / 1000 for i in range(stage + 1))
    surrogate = Gradual(unet_score, (30, 50, 125), (1, 1, 5))
    assert [inner.path(2 * X - 1, KEYS).times for inner in surrogate.purifiers][1:] == [
        (0.05, 0.0),
        (0.125, 0.1, 0.075, 0.05, 0.025, 0.0),
    ]


def test_exact_equals_backprop_bitwise_and_batches_do_not_matter(unet_score):
    gradients = []
    for mode in ("exact", "backprop"):
        x = X.clone().requires_grad_()
        gradients.append(torch.autograd.grad(Gradual(unet_score, (30, 50), (3, 2), mode)(x, KEYS).square().sum(), x)[0])
    assert torch.equal(*gradients) and gradients[0].abs().min() > 0
    purifier = Gradual(unet_score.double(), (30, 50), (3, 2))
    with torch.no_grad():
        torch.testing.assert_close(
            purifier(X[1:2].double(), KEYS[1:2]), purifier(X.double(), KEYS)[1:2], rtol=0, atol=1e-12
        )


def test_bad_arguments(unet_score):
    for arguments, message in (
        ({"stages": (30, 50)}, "stages and steps must have one entry for each stage, got 2 and 8"),
        ({"stages": (), "steps": ()}, "stages and steps must have one entry for each stage, got 0 and 0"),
        ({"stages": (30,), "steps": (31,)}, r'grid="chain" takes up to t_star \* 1000 steps'),
        ({"stages": (30,), "steps": (0,)}, "steps must be a positive integer, got 0"),
        ({"stages": (1200,), "steps": (3,)}, r"t_star must lie in \(0, t_max=1\], got 1.2"),
        ({"gradient": "adjoint"}, 'gradient="adjoint" needs a solver that has one'),
    ):
        with pytest.raises(ValueError, match=message):
            Gradual(unet_score, **arguments)
    edm = ScoreModel(GaussianNoise(EDM()), EDM(), "noise")
    with pytest.raises(ValueError, match="times of a variance-preserving schedule; this score model has EDM"):
        Gradual(edm)
