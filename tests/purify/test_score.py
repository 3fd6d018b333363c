import golden
import pytest
import torch
from torch import nn

from purify import ScoreModel
from purify.schedules import EDM, VE, LinearVP, SubVP


class Oracle(nn.Module):
    """Returns what each parametrisation asks for, given the true x0 and noise."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x, t):
        return self.output


@pytest.mark.parametrize("schedule", [LinearVP(), SubVP(), VE(), EDM()], ids=str)
@pytest.mark.parametrize("prediction", ["noise", "score", "x0", "v"])
def test_every_parametrisation_means_the_same(prediction, schedule):
    """A network that returns its training target gives back the true noise, score and image, for float and tensor times."""
    t = 0.37
    x0, noise = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = ScoreModel(Oracle(None), schedule, prediction)
    model.network.output = model.target(x0, noise, t)
    x_t = model.diffuse(x0, noise, t)
    torch.testing.assert_close(x_t, schedule.alpha(t) * x0 + schedule.sigma(t) * noise)
    for time in (t, torch.full((3,), t, dtype=torch.float64)):
        torch.testing.assert_close(model.noise(x_t, time), noise)
        torch.testing.assert_close(model.score(x_t, time), -noise / schedule.sigma(t))
        torch.testing.assert_close(model.denoised(x_t, time), x0)


class Recorder(nn.Module):
    def forward(self, x, t):
        self.seen = t
        return x


@pytest.mark.parametrize(
    ("schedule", "arguments", "expected"),
    [
        (LinearVP(), {"time_scale": 999.0}, 499.5),
        (LinearVP(), {"time_scale": 1000.0, "time_offset": -1.0}, 499.0),
        (LinearVP(), {"time_scale": 1003.0, "floor_labels": True}, 501.0),
        (LinearVP(), {"time_label": "sigma"}, LinearVP().sigma(0.5) / LinearVP().alpha(0.5)),
        (VE(), {"time_label": "sigma"}, VE().sigma(0.5)),
        (EDM(), {"time_label": "sigma"}, 0.5),
    ],
)
def test_time_labels(schedule, arguments, expected):
    model = ScoreModel(Recorder(), schedule, "noise", **arguments)
    for t in (0.5, torch.tensor([0.5, 0.5])):
        model(torch.zeros(2, 1, 4, 4), t)
        assert model.network.seen.dtype == torch.float32
        assert model.network.seen.tolist() == pytest.approx([expected] * 2, rel=1e-6)


def test_networks_that_are_labelled_by_sigma():
    """EDM's network is a denoiser, score_sde's VE network a score (its recorded outputs are): each seen as the same kind of model."""
    io = golden.recorded("edm.ddpmpp_small")
    model = ScoreModel(golden.network("edm.ddpmpp_small"), EDM(), "x0", time_label="sigma")
    torch.testing.assert_close(model.denoised(io["x"], io["t"]), io["out"], rtol=0, atol=1e-5 * float(io["out"].abs().max()))

    io, schedule = golden.recorded("score_sde.ncsnpp_ve_small"), VE(0.01, 50.0)
    model = ScoreModel(golden.network("score_sde.ncsnpp_ve_small"), schedule, "score", time_label="sigma")
    t = torch.tensor([schedule.time_of(float(sigma)) for sigma in io["t"]])
    assert golden.relative_error(model.score(io["x"], t), io["out"]) < 1e-4  # the Fourier embedding amplifies the rounding of t
    assert golden.relative_error(model.denoised(io["x"], t), io["x"] + io["t"].reshape(-1, 1, 1, 1) ** 2 * io["out"]) < 1e-4


def test_learned_variance_is_left_out():
    class Double(nn.Module):
        def forward(self, x, t):
            return torch.cat([x, 7 * x], dim=1)

    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(ScoreModel(Double(), LinearVP())(x, 0.5), x)


def test_unknown_prediction():
    with pytest.raises(ValueError, match="prediction='epsilon' is not one of noise, score, x0, v"):
        ScoreModel(nn.Identity(), LinearVP(), "epsilon")
    with pytest.raises(ValueError, match="time_label='step' is not one of t, sigma"):
        ScoreModel(nn.Identity(), LinearVP(), time_label="step")
    with pytest.raises(ValueError, match='floor_labels rounds time_label="t" down'):
        ScoreModel(nn.Identity(), LinearVP(), time_label="sigma", floor_labels=True)
