import pytest
import torch

from benchmarks import datasets
from benchmarks.datasets import Dataset
from benchmarks.evaluation.denoising import LARGEST, PLENTY, LinearDenoiser, denoising_errors, own_times
from purify import ScoreModel, load_score_model, schedules
from purify.networks.gaussian import GaussianNoise


def gaussian_images(count, mean=128.0, std=30.0, seed=0):
    """Independent normal pixels, rounded; 30 levels are 0.235 of the range [-1, 1]."""
    images = (
        (mean + std * torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))).round().clamp(0, 255)
    )
    return Dataset(images.byte(), torch.zeros(count, dtype=torch.int64), ("all",))


@pytest.mark.parametrize("schedule", [schedules.LinearVP(), schedules.EDM(), schedules.SubVP()])
@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_of_gaussian_data_both_errors_are_the_posterior_variance(schedule, value_range):
    """(1 / s^2 + 1 / r^2)^-1 for pixels of standard deviation s and noise r for the signal: nothing does better, and
    the linear denoiser does as well.
    """
    test = gaussian_images(1000, seed=1)
    low, high = value_range
    mean, std = low + 128 / 255 * (high - low), 30 / 255 * (high - low)
    model = ScoreModel(GaussianNoise(schedule, mean, std), schedule, image_shape=(1, 4, 4), value_range=value_range)
    model.register_parameter("place", torch.nn.Parameter(torch.zeros(())))
    times = own_times(model, (0.05, 0.2))
    exact = denoising_errors(model, test, times)
    linear = LinearDenoiser.fit(gaussian_images(20_000), value_range).errors(model, test, times)
    vp = schedules.LinearVP()
    for name, error in exact.items():
        ratio = vp.sigma(name) / vp.alpha(name)
        expected = 1 / (1 / (60 / 255) ** 2 + 1 / ratio**2)
        assert error == pytest.approx(expected, rel=0.03), name  # 16,000 squares of normals: 1.1 %
        assert linear[name] == pytest.approx(error, rel=2e-3)


def test_the_linear_denoiser_uses_correlations():
    """All pixels of an image equal, so that 16 noisy ones tell its grey: the error is that of one number under a
    sixteenth of the noise's variance.
    """
    generator = torch.Generator().manual_seed(0)
    greys = (
        (128 + 40 * torch.randn(5000, 1, 1, 1, generator=generator))
        .clamp(0, 255)
        .byte()
        .expand(-1, 1, 4, 4)
        .contiguous()
    )
    data = Dataset(greys, torch.zeros(5000, dtype=torch.int64), ("all",))
    model = load_score_model("fashion-mnist")
    error = LinearDenoiser.fit(data, (-1.0, 1.0)).errors(model, data, {0.1: 0.1})[0.1]
    ratio = model.schedule.sigma(0.1) / model.schedule.alpha(0.1)
    assert error == pytest.approx(1 / (1 / (80 / 255) ** 2 + 16 / ratio**2), rel=0.1)


def test_the_packaged_network_beats_the_linear_denoiser():
    model, data = load_score_model("fashion-mnist"), datasets.load("fashion-mnist-embedded")
    times = own_times(model, (0.05, 0.1, 0.3))
    # fitted to the very images it is measured on
    linear = LinearDenoiser.fit(data, model.value_range).errors(model, data, times)
    network = denoising_errors(model, data, times)
    assert all(network[t] < 0.8 * linear[t] for t in times)


def test_times_beyond_the_training_are_left_out():
    model = ScoreModel(torch.nn.Identity(), schedules.LinearVP(), t_max=0.3)
    assert own_times(model, (0.1, 0.3, 0.31)) == {0.1: pytest.approx(0.1), 0.3: 0.3}
    edm = own_times(ScoreModel(torch.nn.Identity(), schedules.EDM()), (0.1,))
    assert edm[0.1] == pytest.approx(schedules.LinearVP().sigma(0.1) / schedules.LinearVP().alpha(0.1))


def test_few_images_make_a_worse_linear_denoiser():
    """From twice as many images as pixels it overfits by a third, from `PLENTY` times as many by little: what a card
    may call a comparison.
    """
    model, test, best = load_score_model("fashion-mnist"), gaussian_images(1000, seed=1), {}
    for images in (2 * 16, PLENTY * 16, 20_000):
        train = gaussian_images(images)
        assert LinearDenoiser.has_plenty(train) == (images >= PLENTY * 16)
        best[images] = LinearDenoiser.fit(train, (-1.0, 1.0)).errors(model, test, {0.1: 0.1})[0.1]
    assert best[32] > 1.1 * best[20_000] and best[160] < 1.05 * best[20_000]


def test_large_images_are_refused():
    side = int(LARGEST**0.5) + 1
    data = Dataset(torch.zeros(2, 1, side, side, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("all",))
    with pytest.raises(ValueError, match="at most 5,000 numbers"):
        LinearDenoiser.fit(data, (-1.0, 1.0))
