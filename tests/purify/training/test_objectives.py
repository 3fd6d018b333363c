import math

import pytest
import torch
from torch import nn

from purify import ScoreModel
from purify.networks.gaussian import GaussianNoise
from purify.schedules import EDM, VE, DiscreteVP, Functions, LinearVP, SubVP, log_snr, noise_to_signal
from purify.training.objectives import (
    LognormalTimes,
    LogSNRTimes,
    TimeSampling,
    classification,
    denoising_loss,
    denoising_score_matching,
    to_network_range,
    weights,
)

IMAGES = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 10
CIRCLE = Functions(lambda t: (math.pi / 2 * t).cos(), lambda t: (math.pi / 2 * t).tan(), t_max=0.99)
RANGES = [
    (LinearVP(), 1e-3, 1.0),
    (DiscreteVP.linear(), 1e-3, 1.0),
    (SubVP(), 1e-2, 1.0),
    (VE(), 1e-3, 1.0),
    (EDM(), 2e-3, 80.0),
    (CIRCLE, 1e-3, 0.98),
]
"""A process of each kind, and times that training might take."""
STD = 0.25
"""Four standard deviations fit into [-1, 1]: the bytes clip next to nothing."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_bytes(count, std=STD):
    return ((std * torch.randn(count, 1, 16, 16, generator=seeded()) + 1) * 127.5).round().clamp(0, 255).byte()


class Curved(nn.Module):
    """Some nonlinear network, in the precision of its input."""

    def forward(self, x, t):
        return (1.3 * x).tanh() + 0.1 * t.reshape(-1, 1, 1, 1)


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, labels):
        self.seen.append(x)
        return x


class Zero(nn.Module):
    def forward(self, x, t):
        return torch.zeros_like(x)


def test_the_default_objective_takes_the_steps_that_it_always_took():
    """Recorded before there were others: a training that was interrupted then goes on with the same random numbers."""
    times = TimeSampling(focus_share=0.5).draw(5, seeded(), LinearVP())
    torch.testing.assert_close(
        times, torch.tensor([0.29775405, 0.39251924, 0.79251522, 0.05776204, 0.17775799]), rtol=0, atol=5e-8
    )

    class Slope(nn.Module):
        def forward(self, x, t):
            return 0.1 * x * t[:, None, None, None]

    loss = denoising_score_matching(TimeSampling(t_max=0.3), flip=True)(
        ScoreModel(Slope(), LinearVP(), "v"), IMAGES, LABELS, seeded(3)
    )
    assert loss.item() == pytest.approx(0.8357354402542114, rel=1e-6)


@pytest.mark.parametrize(("schedule", "t_min", "t_max"), RANGES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("prediction", ["noise", "score", "x0", "v", "edm"])
def test_every_weighting_is_its_own_error_in_every_parametrisation(schedule, t_min, t_max, prediction):
    """The weighted loss of the output, against the errors of score, noise and clean image that the weightings are
    defined by.
    """
    model = ScoreModel(Curved(), schedule, prediction, sigma_data=0.4)
    x0, noise = torch.randn(2, 6, 1, 4, 4, dtype=torch.float64, generator=seeded())
    t = torch.linspace(t_min, t_max, 6, dtype=torch.float64)
    wide = t[:, None, None, None]
    x_t, ratio = model.diffuse(x0, noise, t), noise_to_signal(schedule, wide)
    of_score, of_noise = model.score(x_t, t) + noise / schedule.sigma(wide), model.noise(x_t, t) - noise
    of_x0 = model.denoised(x_t, t) - x0
    expected = {
        "simple": model(x_t, t) - model.target(x0, noise, t),
        "likelihood": schedule.diffusion(wide) * of_score,
        "edm": (ratio**2 + 0.4**2).sqrt() / (ratio * 0.4) * of_x0,
        "snr": of_noise,
        "min-snr": (1 / ratio).clamp(max=math.sqrt(5)) * of_x0,
    }
    for weighting, error in expected.items():
        loss = denoising_loss(model, x0, noise, t, weighting)
        assert loss.item() == pytest.approx(error.square().mean().item(), rel=1e-6), weighting


def test_weights_have_the_published_form():
    """Min-SNR: min(SNR, 5) for x0, over SNR for noise and over SNR + 1 for v (Hang et al.); likelihood for the score:
    g^2; EDM for its own F: 1.
    """
    schedule, t = LinearVP(), torch.tensor([0.05, 0.3, 0.8], dtype=torch.float64)
    ratio = schedule.alpha(t) ** 2 / schedule.sigma(t) ** 2
    for prediction, divisor in {"x0": 1, "noise": ratio, "v": ratio + 1}.items():
        torch.testing.assert_close(
            weights(ScoreModel(Zero(), schedule, prediction), t, "min-snr"), ratio.clamp(max=5) / divisor
        )
    torch.testing.assert_close(weights(ScoreModel(Zero(), schedule, "score"), t, "likelihood"), schedule.beta(t))
    torch.testing.assert_close(weights(ScoreModel(Zero(), EDM(), "edm"), t, "edm"), torch.ones_like(t))


@pytest.mark.parametrize("weighting", ["edm", "simple"])
def test_edm_loss_of_a_zero_network_is_one(weighting):
    """For data of deviation sigma_data, at EDM's own noise levels: F = 0 is worth 1 (Karras et al. 2022, section 5)."""
    model = ScoreModel(Zero(), EDM(), "edm", sigma_data=STD)
    loss = denoising_score_matching(LognormalTimes(2e-3, 80.0), weighting=weighting)(
        model, gaussian_bytes(400), torch.zeros(400), seeded(1)
    )
    assert loss.item() == pytest.approx(1, rel=0.02)


def test_simple_loss_of_a_zero_noise_network_is_one():
    loss = denoising_score_matching(TimeSampling())(
        ScoreModel(Zero(), LinearVP(), "noise"), gaussian_bytes(400), torch.zeros(400), seeded(1)
    )
    assert loss.item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize(
    ("schedule", "t_min", "t_max"),
    [(LinearVP(), 0.1, 0.6), (SubVP(), 0.2, 0.8), (VE(), 0.3, 0.8), (EDM(), 0.2, 1.0), (CIRCLE, 0.1, 0.7)],
)
def test_likelihood_loss_of_the_exact_network_integrates_to_its_closed_form(schedule, t_min, t_max):
    """int g^2 E |score error|^2 dt = ln(r^2 / (r^2 + s^2)), r = sigma / alpha, between the ends, whatever the process:
    g^2 dt = alpha^2 d(r^2).
    """
    model = ScoreModel(GaussianNoise(schedule, 0.0, STD), schedule, "noise")
    times = TimeSampling(t_min, t_max, focus=t_max)
    loss = denoising_score_matching(times, weighting="likelihood")(
        model, gaussian_bytes(600), torch.zeros(600), seeded(1)
    ).item()
    first, last = (noise_to_signal(schedule, t) ** 2 for t in (t_min, t_max))
    closed = math.log(last / (last + STD**2)) - math.log(first / (first + STD**2))
    assert loss * (t_max - t_min) == pytest.approx(closed, rel=0.03)


def test_score_matching_loss_of_the_exact_network_is_the_posterior_variance(gaussian_score):
    """For Gaussian data the best noise prediction leaves E Var(n | x_t) = alpha^2 s^2 / (alpha^2 s^2 + sigma^2),
    averaged over t.
    """
    score, times = gaussian_score(0.0, STD), TimeSampling(t_min=0.2, focus=0.201, t_max=0.202, focus_share=0.0)
    loss = denoising_score_matching(times)(score, gaussian_bytes(400), torch.zeros(400), seeded(1)).item()
    signal = LinearVP().alpha(0.201) ** 2 * STD**2
    assert loss == pytest.approx(signal / (signal + LinearVP().sigma(0.201) ** 2), rel=0.03)


def test_score_matching_mirrors_half_of_the_images():
    """Almost without noise, what the network sees is the image or its mirror image."""
    times, network = TimeSampling(t_min=1e-9, focus=1e-8, t_max=1e-8), Recorder()
    for flip in (False, True):
        denoising_score_matching(times, flip)(ScoreModel(network, LinearVP()), IMAGES, LABELS, seeded())
    clean = to_network_range(IMAGES)
    same, mirrored = ((network.seen[1] - other).abs().amax((1, 2, 3)) < 1e-3 for other in (clean, clean.flip(3)))
    assert (same | mirrored).all() and 0.2 < mirrored.double().mean() < 0.8
    assert (network.seen[0] - clean).abs().max() < 1e-3


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)])
def test_images_come_in_the_models_own_range(value_range):
    model = ScoreModel(Recorder(), EDM(), "x0", value_range=value_range)
    denoising_score_matching(TimeSampling(t_min=1e-9, focus=1e-8, t_max=1e-8))(model, IMAGES, LABELS, seeded())
    torch.testing.assert_close(model.network.seen[0], model.from_unit(IMAGES.float() / 255), rtol=0, atol=1e-5)


def test_time_sampling_has_the_stated_shares():
    times = TimeSampling(focus=0.3, focus_share=0.75).draw(100_000, seeded(), LinearVP())
    assert times.min() >= 1e-5 and times.max() <= 1
    assert (times < 0.3).double().mean().item() == pytest.approx(0.75 + 0.25 * 0.3, abs=0.001)
    assert (times > 0.65).double().mean().item() == pytest.approx(0.25 * 0.35, abs=0.001)


@pytest.mark.parametrize(("schedule", "t_min", "t_max"), RANGES, ids=lambda value: type(value).__name__)
def test_log_snr_times_are_uniform_in_log_snr(schedule, t_min, t_max):
    times = LogSNRTimes(t_min, t_max).draw(500, seeded(), schedule)
    assert times.dtype == torch.float32 and times.min() >= t_min * (1 - 1e-6) and times.max() <= t_max * (1 + 1e-6)
    values = log_snr(schedule, times.double()).sort().values
    low, high = (log_snr(schedule, t) for t in (t_max, t_min))
    torch.testing.assert_close(
        values.diff(), torch.full((499,), (high - low) / 500, dtype=torch.float64), rtol=0.02, atol=0
    )
    assert values[0] - low < (high - low) / 500


@pytest.mark.parametrize(
    "schedule", [EDM(), VE(sigma_min=1e-3, sigma_max=1e3), CIRCLE], ids=lambda value: type(value).__name__
)
def test_lognormal_times_have_edms_distribution(schedule):
    """Nearly unrestricted: the mean and deviation of ln(sigma / alpha) are EDM's P_mean and P_std."""
    t_min, t_max = schedule.time_of(3e-3), min(schedule.time_of(60.0), schedule.t_max)
    values = noise_to_signal(schedule, LognormalTimes(t_min, t_max).draw(20_000, seeded(), schedule).double()).log()
    assert values.mean().item() == pytest.approx(-1.2, abs=2e-3)
    assert values.std().item() == pytest.approx(1.2, abs=2e-3)


def test_lognormal_times_stay_inside_without_heaps_at_the_ends():
    """Restricted to sigma in (0.1, 1), the median is that of the restricted normal distribution."""
    times = LognormalTimes(0.1, 1.0).draw(10_000, seeded(), EDM())
    assert times.min() >= 0.1 and times.max() <= 1 and len(times.unique()) > 9_900
    ends = torch.special.ndtr((torch.tensor([0.1, 1.0], dtype=torch.float64).log() + 1.2) / 1.2)
    median = (-1.2 + 1.2 * torch.special.ndtri(ends.mean())).exp()
    assert times.median().item() == pytest.approx(median.item(), rel=1e-3)


def test_classifier_augmentation_moves_whole_images():
    """With shift and mirror, every batch is made of shifted, mirrored originals and nothing else."""
    seen = []

    class Logits(nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(len(x), 10)

    many = IMAGES.repeat(8, 1, 1, 1)  # enough for each of the 18 variants to occur
    loss = classification(shift=1, flip=True)(Logits(), many, LABELS.repeat(8), seeded())
    assert loss.item() == pytest.approx(math.log(10))
    padded = nn.functional.pad(many.float() / 255, (1,) * 4)
    options = [v[..., r : r + 8, c : c + 8] for r in range(3) for c in range(3) for v in (padded,)]
    options = torch.stack([o for option in options for o in (option, option.flip(3))])
    matches = (options == seen[0]).flatten(2).all(2)
    assert matches.any(0).all()
    assert matches.any(1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeSampling(focus=0.0), "need 0 < t_min < focus"),
        (lambda: TimeSampling(focus_share=1.5), "focus_share must lie in"),
        (lambda: LogSNRTimes(0.5, 0.5), "need 0 < t_min < t_max, got t_min=0.5, t_max=0.5"),
        (lambda: LognormalTimes(std=0.0), "std a positive one, got mean=-1.2, std=0.0"),
        (
            lambda: denoising_score_matching(TimeSampling(), weighting="p2"),
            "weighting='p2' is not one of simple, likelihood, edm, snr, min-snr",
        ),
        (
            lambda: denoising_score_matching(LogSNRTimes(1e-3, 80.0))(
                ScoreModel(Zero(), LinearVP()), IMAGES, LABELS, seeded()
            ),
            "t_max lies beyond 1.0, the end of the model's times",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
