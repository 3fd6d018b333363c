import pytest
import torch
from torch import nn

from purify import ScoreModel
from purify.schedules import LinearVP


class Oracle(nn.Module):
    """Returns what each parametrisation asks for, given the true x0 and noise."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x, t):
        return self.output


@pytest.mark.parametrize("prediction", ["noise", "score", "x0", "v"])
def test_every_parametrisation_means_the_same(prediction):
    """A network that returns its training target gives back the true noise, score and image, for float and tensor times."""
    schedule, t = LinearVP(), 0.37
    x0, noise = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = ScoreModel(Oracle(None), schedule, prediction)
    model.network.output = model.target(x0, noise, t)
    x_t = model.diffuse(x0, noise, t)
    torch.testing.assert_close(x_t, schedule.alpha(t) * x0 + schedule.sigma(t) * noise)
    for time in (t, torch.full((3,), t, dtype=torch.float64)):
        torch.testing.assert_close(model.noise(x_t, time), noise)
        torch.testing.assert_close(model.score(x_t, time), -noise / schedule.sigma(t))
        torch.testing.assert_close(model.denoised(x_t, time), x0)


def test_time_labels_are_scaled():
    seen = []

    class Recorder(nn.Module):
        def forward(self, x, t):
            seen.append(t)
            return x

    ScoreModel(Recorder(), LinearVP(), "noise", time_scale=999.0)(torch.zeros(2, 1, 4, 4), 0.5)
    assert seen[0].tolist() == [499.5, 499.5]


def test_unknown_prediction():
    with pytest.raises(ValueError, match="prediction='epsilon' is not one of noise, score, x0, v"):
        ScoreModel(nn.Identity(), LinearVP(), "epsilon")
