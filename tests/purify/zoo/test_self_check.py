"""The look at a score model when it is loaded: silent for the right conventions, and naming the right ones for the
wrong.
"""

import copy
import re
import warnings

import pytest
import torch

import purify
from purify import ScoreModel
from purify.networks.gaussian import GaussianNoise
from purify.schedules import EDM, VE, DiscreteVP, LinearVP
from purify.zoo.self_check import ScoreModelWarning, diagnose, error_left

RIGHT = (
    r"with schedule=LinearVP\(beta_min=0.1, beta_max=20.0\), time_scale=1, time_offset=0, prediction='v',"
    r" value_range=\(-1.0, 1.0\) it denoises"
)


@pytest.fixture(scope="module")
def packaged():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the packaged model must pass on the synthetic images
        return purify.load_score_model("fashion-mnist")


def changed(model, **changes):
    other = copy.copy(model)
    for name, value in changes.items():
        setattr(other, name, value)
    other.t_max = other.schedule.t_max
    return other


@pytest.mark.parametrize(
    "mistake",
    [
        {"schedule": VE()},
        {"schedule": VE(), "time_label": "sigma"},
        {"schedule": EDM(), "time_label": "sigma"},
        {"schedule": DiscreteVP.cosine()},
        {"time_scale": 1000.0},
        {"time_scale": 999.0},
        {"prediction": "noise"},
        {"prediction": "score"},
        {"prediction": "x0"},
    ],
    ids=str,
)
def test_mistakes_are_named(packaged, mistake):
    found = diagnose(changed(packaged, **mistake))
    assert found is not None
    assert re.search(RIGHT, found), found


def test_the_error_is_that_of_theory():
    """For Gaussian pixels the best denoiser is the best constant multiple of the deviation from the mean: a ratio of 1
    where the mean is 0.
    """
    schedule = LinearVP()
    model = ScoreModel(GaussianNoise(schedule, 0.0, 0.5), schedule)
    x = (
        torch.randn(3, 1, 128, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.25 + 0.5
    ).clamp(0, 1)
    for ratio in error_left(model, x).values():
        assert ratio == pytest.approx(1, abs=0.05)


def test_untrained_weights_are_reported(unet_score, tmp_path):
    purify.save_score_model(
        tmp_path / "m.safetensors",
        unet_score,
        "small_unet",
        {"channels": 1, "base_channels": 16, "multipliers": [1, 2], "blocks": 1},
    )
    with pytest.warns(
        ScoreModelWarning,
        match="m.safetensors: the model hardly denoises smooth test images.*No usual convention does better",
    ):
        purify.load_score_model(tmp_path / "m.safetensors")
    with pytest.warns(ScoreModelWarning, match="hardly denoises the given images"):
        purify.load_score_model(tmp_path / "m.safetensors", images=torch.rand(2, 1, 28, 28))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        purify.load_score_model(tmp_path / "m.safetensors", check=False)


def test_a_model_of_low_noise_only_is_judged_there(packaged):
    limited = copy.copy(packaged)
    limited.t_max = 0.1
    assert set(error_left(limited, torch.rand(3, 1, 28, 28))) == {0.2}
    assert diagnose(limited) is None
    limited.t_max = 1e-3
    assert error_left(limited, torch.rand(3, 1, 28, 28)) == {} and diagnose(limited) is None


def test_images_are_checked(packaged):
    for images, message in (
        (torch.rand(2, 3, 28, 28), r"images must be \(n, 1, h, w\), got \(2, 3, 28, 28\)"),
        (2 * torch.rand(2, 1, 28, 28), r"images must be floating point in \[0, 1\]"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), r"images must be floating point in \[0, 1\], got torch.uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            diagnose(packaged, images)
