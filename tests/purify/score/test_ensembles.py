import copy

import golden
import pytest
import torch
from torch import nn

from purify import DiffPure, ScoreModel, noise_keys
from purify.networks.gaussian import GaussianNoise
from purify.schedules import VE, LinearVP
from purify.score.ensembles import ensemble
from purify.score.parametrisation import convert


class Gaussian(nn.Module):
    """The exact network of N(mean, 0.5^2) for `prediction`, labelled by `scale * t`."""

    def __init__(self, mean, prediction, scale):
        super().__init__()
        self.oracle = GaussianNoise(LinearVP(), mean, 0.5)
        self.prediction, self.scale = prediction, scale

    def forward(self, x, labels):
        t = labels / self.scale
        alpha, sigma = (function(t)[:, None, None, None] for function in (LinearVP().alpha, LinearVP().sigma))
        return convert(self.oracle(x, t), x, alpha, sigma, "noise", self.prediction)


@pytest.fixture
def members():
    return [
        ScoreModel(Gaussian(0.2, "noise", 1.0), LinearVP(), "noise", t_max=0.9),
        ScoreModel(Gaussian(-0.1, "x0", 999.0), LinearVP(), "x0", time_scale=999.0, t_max=0.8),
        ScoreModel(Gaussian(0.5, "score", 1000.0), LinearVP(), "score", time_scale=1000.0),
    ]


def test_the_mean_of_linear_scores_is_known(members):
    """Networks of N(m_i, s^2) are affine with one slope: their weighted mean is the network of N(sum w_i m_i, s^2)."""
    together = ensemble(members, [1, 2, 5])
    mean = (1 * 0.2 + 2 * -0.1 + 5 * 0.5) / 8
    expected = ScoreModel(GaussianNoise(LinearVP(), mean, 0.5), LinearVP())
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0.3, torch.tensor([0.1, 0.3, 0.7], dtype=torch.float64)):
        for name in ("noise", "score", "denoised"):
            torch.testing.assert_close(
                getattr(together, name)(x, t), getattr(expected, name)(x, t), rtol=1e-9, atol=1e-12
            )
    assert together.t_max == 0.8 and together.prediction == "noise" and together.schedule == LinearVP()

    x, keys = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True), noise_keys(0, torch.arange(2), 0)
    results = [DiffPure(model, 0.1, 5)(x, keys) for model in (together, expected)]
    gradients = [torch.autograd.grad(result.sum(), x)[0] for result in results]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_one_member_is_itself(unet_score):
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(ensemble([unet_score], [3.0]).noise(x, 0.2), unet_score.noise(x, 0.2))


def test_an_evaluation_counts_once_for_each_member(members):
    together, seen = ensemble(members), []
    scores = {id(m): m for m in DiffPure(together, 0.1, 4).modules() if isinstance(m, ScoreModel)}
    for score in scores.values():
        score.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    for evaluate in (together, together.noise, together.score, together.denoised):
        seen.clear()
        evaluate(x, 0.2)
        assert seen == [2, 2, 2]


def test_members_that_share_a_network_count_each():
    model = ScoreModel(GaussianNoise(LinearVP(), 0.2, 0.5), LinearVP()).eval()
    copied, seen = model.with_label_rounding(None), []
    together = ensemble([model, copied])
    for score in together.network:
        score.register_forward_hook(lambda module, inputs, output: seen.append(module))
    together.noise(torch.zeros(2, 1, 4, 4), 0.2)
    assert [id(module) for module in seen] == [id(model), id(copied)]
    assert copied.network is model.network and not copied.training


def test_it_is_a_module_like_others(members, unet_score):
    """State, precision, and the sizes of images that all members take."""
    together = ensemble([unet_score, copy.deepcopy(unet_score)])
    assert len(together.state_dict()) == 2 * len(unet_score.state_dict())
    assert together.double()(torch.rand(1, 1, 28, 28, dtype=torch.float64), 0.2).dtype == torch.float64
    assert together.network.size_multiple == unet_score.network.size_multiple > 1
    with pytest.raises(ValueError, match="multiples of"):
        DiffPure(together, 0.1, 2)(torch.rand(1, 1, 27, 27))


def test_rounded_labels_are_the_members():
    network = golden.network("guided_diffusion.small")
    single = ScoreModel(network, LinearVP(), "noise", (3, 16, 16), time_scale=1000.0)
    together = ensemble([single, single]).with_label_rounding("floor")
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = single.with_label_rounding("floor").noise(x, 0.1237)
    assert not torch.equal(expected, single.noise(x, 0.1237))
    torch.testing.assert_close(together.noise(x, 0.1237), expected)


def test_models_that_do_not_belong_together(members):
    one = members[0]
    other = ScoreModel(nn.Identity(), VE())
    unit = ScoreModel(nn.Identity(), LinearVP(), value_range=(0.0, 1.0))
    shaped = ScoreModel(nn.Identity(), LinearVP(), image_shape=(1, 28, 28))
    classes = ScoreModel(nn.Identity(), LinearVP(), classes=3)
    for models, weights, message in (
        ([], None, r"ensemble needs one or more ScoreModels, got \[\]"),
        ([one, nn.Identity()], None, r"ensemble needs one or more ScoreModels, got \['ScoreModel', 'Identity'\]"),
        ([one, other], None, "ensemble needs models of the same schedule, got LinearVP.*, VE"),
        ([one, unit], None, r"the same value_range, got \(-1.0, 1.0\), \(0.0, 1.0\)"),
        ([one, shaped], None, r"the same image_shape, got None, \(1, 28, 28\)"),
        ([one, classes], None, "choose one by score.with_class"),
        (members, [1, 2], r"weights must be 3 numbers above 0, one for each model, got \[1, 2\]"),
        (members, [1, 2, 0], "weights must be 3 numbers above 0"),
        (members, [1, 2, float("nan")], "weights must be 3 numbers above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ensemble(models, weights)
