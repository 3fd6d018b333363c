"""GDMP: the published rule pixel by pixel, and a gradient that has the guidance."""

import golden
import pytest
import torch

from purify import GDMP, ScoreModel, noise_keys
from purify.networks.gaussian import GaussianNoise
from purify.noise import Purpose, Stage, derive_keys, standard_normal
from purify.purifiers.guided import ssim
from purify.schedules import EDM, DiscreteVP

KEYS = noise_keys(0, torch.arange(3), 0)
X = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def gradient(purifier, x, weight=WEIGHT):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((purifier(x, KEYS) * weight.to(x.dtype)).sum(), x)[0]


@pytest.mark.parametrize("target", ["noised", "clean"])
def test_steps_are_the_published_equations(target):
    """On DDPM's chain, in its own terms: the posterior mean plus the variance times the scaled gradient of the mean
    squared error.
    """
    chain = DiscreteVP.linear()
    score = ScoreModel(GaussianNoise(chain, 0.2, 0.5), chain, "noise")
    abar = torch.cumprod(1 - torch.tensor(chain.betas, dtype=torch.float64), 0)
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    image = state = 2 * x - 1
    scale, ptb = 50.0, 8.0
    for number in range(2):
        keys = derive_keys(KEYS, number, 0, Purpose.ROUND)
        state = abar[5].sqrt() * state + (1 - abar[5]).sqrt() * standard_normal(
            keys, Stage.FORWARD, 0, (1, 4, 4), torch.float64
        )
        for index, k in enumerate(reversed(range(6))):
            now, before = abar[k], abar[k - 1] if k else torch.tensor(1.0, dtype=torch.float64)
            beta = chain.betas[k]
            x0 = 0.2 + now.sqrt() * 0.25 / (now * 0.25 + 1 - now) * (state - now.sqrt() * 0.2)
            mean = before.sqrt() * beta / (1 - now) * x0 + (1 - beta) ** 0.5 * (1 - before) / (1 - now) * state
            guide = image
            if target == "noised":
                guide = now.sqrt() * image + (1 - now).sqrt() * standard_normal(
                    keys, Stage.GUIDE, index, (1, 4, 4), torch.float64
                )
            distance_slope = 2 * (state - guide) / 16
            strength = (1 - now).sqrt() / (now.sqrt() * (ptb * 2 / 255 / 3 / scale))
            z = standard_normal(keys, Stage.INCREMENT, index, (1, 4, 4), torch.float64) if k else 0
            state = mean - beta * strength * distance_slope + beta**0.5 * z
    purifier = GDMP(score, 0.006, 6, passes=2, scale=scale, target=target)
    torch.testing.assert_close(purifier(x, KEYS), (state + 1) / 2, rtol=0, atol=1e-10)


def test_published_defaults(unet_score):
    purifier = GDMP(unet_score)
    assert (purifier.steps, purifier.passes, purifier.guidance, purifier.scale) == (36, 4, "mse", 60000)
    assert purifier.epsilon == 8 / 255 and purifier.variance == "large" and purifier.target == "noised"
    assert purifier.times == tuple((36 - i) / 1000 for i in range(37))
    path = purifier.path(2 * X - 1, KEYS)
    assert path.solver.steps == 144 and path.times == purifier.times[:-1] * 4 + (0.0,)
    imagenet = GDMP(unet_score, 0.18, 45, passes=1, guidance="ssim", scale=1000, epsilon=4 / 255, target="clean")
    assert imagenet.times == tuple((180 - 4 * i) / 1000 for i in range(46))


@pytest.mark.parametrize(("guidance", "scale"), [("mse", 250.0), ("ssim", 50.0)])
def test_guidance_pulls_towards_the_image(unet_score, guidance, scale):
    """The stronger, the nearer."""
    x = X.clone()
    x[:, :, 8:20, 8:20] = 1  # structure, for the structural similarity
    distances = []
    with torch.no_grad():
        for strength in (scale / 100, scale / 10, scale):
            purified = GDMP(unet_score, 0.2, 10, passes=1, guidance=guidance, scale=strength, target="clean")(x, KEYS)
            distances.append(
                (purified - x).square().flatten(1).mean(1) if guidance == "mse" else -ssim(2 * purified - 1, 2 * x - 1)
            )
    assert (distances[0] > distances[1]).all() and (distances[1] > distances[2]).all()


def test_structural_similarity():
    x, y = (
        torch.rand(2, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        for seed in (3, 4)
    )
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64), rtol=1e-12, atol=0)
    assert torch.equal(ssim(x, y), ssim(y, x)) and (ssim(x, y).abs() < 0.2).all()
    # Far from the border, constant images have only the luminance term.
    a, b = 0.3, 0.5
    flat = ssim(
        torch.full((1, 1, 120, 120), a, dtype=torch.float64), torch.full((1, 1, 120, 120), b, dtype=torch.float64)
    )
    assert float(flat) == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), abs=0.02)


@pytest.mark.parametrize(
    ("guidance", "scale", "target"),
    [("mse", 2000.0, "noised"), ("ssim", 5.0, "noised"), ("ssim", 5.0, "clean"), ("none", 1.0, "noised")],
)
def test_gradient_is_exact_with_the_guidance(unet_score, guidance, scale, target):
    """Against backprop, and against finite differences of the whole, through several passes."""
    score, x, h = unet_score.double(), X.double(), 1e-6

    def make(mode="exact"):
        return GDMP(score, 0.03, 3, mode, passes=2, guidance=guidance, scale=scale, target=target)

    exact, backprop = (gradient(make(mode), x) for mode in ("exact", "backprop"))
    # not bitwise: the parts that come through the guide are added up in another order
    assert golden.relative_error(exact, backprop) < 1e-14
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        difference = ((make()(x + h * direction, KEYS) - make()(x - h * direction, KEYS)) * WEIGHT).sum() / (2 * h)
    torch.testing.assert_close((exact * direction).sum(), difference, rtol=1e-5, atol=1e-6)
    functional = torch.func.grad(lambda y: (make()(y, KEYS) * WEIGHT).sum())(x)
    torch.testing.assert_close(functional, exact, rtol=0, atol=1e-10 * float(exact.abs().max()))


def test_gradients_agree_in_single_precision(unet_score):
    exact, backprop = (
        gradient(GDMP(unet_score, 0.03, 3, mode, passes=2, scale=2000.0), X) for mode in ("exact", "backprop")
    )
    assert golden.relative_error(exact, backprop) < 1e-6


def test_the_guide_has_a_gradient_of_its_own(gaussian_score):
    """Where the diffusion forgets the image, what is left of its slope came through the guide."""
    score, x, ones = gaussian_score(0.2, 0.05), torch.rand(3, 1, 4, 4, dtype=torch.float64), torch.ones(3, 1, 4, 4)
    slopes = {
        guidance: (
            gradient(GDMP(score, 0.2, 20, passes=1, guidance=guidance, scale=10.0, target="clean"), x, ones).mean()
        )
        for guidance in ("mse", "none")
    }
    assert slopes["none"] < 0.05 and slopes["mse"] > 10 * slopes["none"]


def test_modes_share_values_and_batches_do_not_matter(unet_score):
    options = {"passes": 2, "scale": 2000.0}
    values = [
        GDMP(unet_score, 0.03, 3, mode, **options)(X.clone().requires_grad_(), KEYS)
        for mode in ("exact", "backprop", "bpda")
    ]
    assert all(torch.equal(values[0], value) for value in values[1:])
    for guidance in ("mse", "ssim"):
        purifier = GDMP(unet_score.double(), 0.03, 3, guidance=guidance, passes=2, scale=5.0)
        with torch.no_grad():
            torch.testing.assert_close(
                purifier(X[1:2].double(), KEYS[1:2]), purifier(X.double(), KEYS)[1:2], rtol=0, atol=1e-11
            )


def test_trajectory(unet_score):
    """The states of all passes; a pass begins with the forward process at t_star."""
    purifier = GDMP(unet_score.double(), 0.03, 3, passes=2, scale=2000.0)
    inside = purifier.trajectory(X.double(), KEYS, points=7, estimates=True)
    assert torch.equal(inside.result, purifier(X.double(), KEYS)) and torch.equal(inside.states[0], inside.noised[0])
    alpha, sigma = unet_score.schedule.alpha(0.03), unet_score.schedule.sigma(0.03)
    noise = standard_normal(derive_keys(KEYS, 1, 0, Purpose.ROUND), Stage.FORWARD, 0, (1, 28, 28), torch.float64)
    torch.testing.assert_close(
        2 * inside.noised[3] - 1, alpha * (2 * X.double() - 1) + sigma * noise, rtol=0, atol=1e-12
    )
    assert inside.estimates.shape == (6, 3, 1, 28, 28)


def test_bad_arguments(unet_score):
    for arguments, message in (
        ({"passes": 0}, "passes must be a positive integer, got 0"),
        ({"guidance": "lpips"}, "guidance='lpips' is not one of mse, ssim, none"),
        ({"target": "other"}, "target='other' is not one of noised, clean"),
        ({"variance": "learned"}, "variance='learned' is not one of small, large"),
        ({"scale": -1.0}, "scale must be a positive number, got -1.0"),
        ({"epsilon": 0.0}, "epsilon must be a positive number, got 0.0"),
        ({"t_star": 0.0365}, r'grid="chain" takes up to t_star \* 1000 steps'),
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"gradient": "adjoint"}, 'gradient="adjoint" needs a solver that has one'),
        (
            {"t_star": 0.2, "steps": 5},
            "scale=60000 pulls .* of the way to the image in the first step, beyond 2 that grows without bound",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            GDMP(unet_score, **arguments)
    for arguments in ({}, {"t_star": 0.001, "steps": 1}):
        with pytest.raises(ValueError, match="times of a variance-preserving schedule"):
            GDMP(ScoreModel(GaussianNoise(EDM()), EDM(), "noise"), **arguments)


def test_images_too_small_for_the_scale_are_refused(gaussian_score):
    """Where the model does not say the size of its images, the first batch does: the pull would grow without bound, and
    stay finite.
    """
    purifier = GDMP(gaussian_score(0.0, 0.5))
    with pytest.raises(ValueError, match=r"beyond 2 that grows without bound: for images of shape \(1, 8, 8\)"):
        purifier(torch.rand(2, 1, 8, 8, dtype=torch.float64))
