import pytest
import torch
from attack_models import BehindNoise
from torch import nn
from torch.nn import functional as F

from attacks import count_cost
from attacks.losses import margin
from attacks.perceptual.feature_distance import FeatureDistance
from attacks.perceptual.low_frequency import LowFrequency, _first_logits, smooth

KERNELS = ((3, 3), (5, 3))


class Linear(nn.Module):
    """Two classes, linear in (3, 8, 8) images."""

    w = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def forward(self, x):
        z = ((x - 0.5) * self.w.to(x.dtype)).sum((1, 2, 3))
        return torch.stack([-z, z], 1) / 2


class Pixels(nn.Module):
    """Features that are the pixels: the distance is the Euclidean norm."""

    def forward(self, x):
        return x.flatten(1)


X = 0.2 + 0.6 * torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = Linear()(X).argmax(1)
L2 = FeatureDistance(Pixels(), 0.3)


def gain(x_adv, x=X, y=Y):
    return margin(Linear()(x_adv.double()), y) - margin(Linear()(x.double()), y)


def test_filters_begin_next_to_the_identity():
    logits = _first_logits((5, 3), X)[None, :, :, None, None].expand(3, -1, -1, 8, 8)
    torch.testing.assert_close(smooth(X, logits, (5, 3), X, 0.05), X, rtol=0, atol=2e-4)


def test_equal_weights_and_no_edges_are_a_box_filter():
    logits = torch.zeros(3, 2, 3, 8, 8, dtype=X.dtype)
    expected = F.avg_pool2d(F.pad(X, (2, 2, 1, 1), "reflect"), (3, 5), 1)
    torch.testing.assert_close(smooth(X, logits, (3, 5), X, 1e6), expected)


def test_weights_mirror_and_edges_hold_back():
    """One pixel by hand: the quarter's entries belong to four, two, two and one neighbours, times the colour weights of
    the guidance.
    """
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 2, 2, 8, 8, generator=generator, dtype=X.dtype)
    guidance = torch.rand(1, 3, 8, 8, generator=generator, dtype=X.dtype)
    row, column, total, weights = 4, 5, 0, 0
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            distance = (guidance[0, :, row + i, column + j] - guidance[0, :, row, column]).abs().sum()
            weight = logits[0, 1 - abs(i), 1 - abs(j), row, column].exp() * (-(distance**2) / (2 * 0.7**2)).exp()
            total, weights = total + weight * X[0, :, row + i, column + j], weights + weight
    torch.testing.assert_close(smooth(X[:1], logits, (3, 3), guidance, 0.7)[0, :, row, column], total / weights)


def test_the_filter_s_gradient():
    logits = torch.randn(1, 2, 2, 3, 3, generator=torch.Generator().manual_seed(3), dtype=X.dtype, requires_grad=True)
    x = X[:1, :2, :3, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: smooth(a, b, (3, 3), X[:1, :2, :3, :3], 0.5), (x, logits))


def test_reaches_most_of_the_optimum_of_a_linear_model():
    """Under a bound on the Euclidean norm of the change the best gain is epsilon |w|, and the modifier alone reaches
    it.
    """
    x_adv = LowFrequency(L2, kernels=KERNELS, iterations=150)(Linear(), X, Y)
    assert (gain(x_adv) > 0.85 * 0.3 * Linear().w.norm()).all()
    assert (L2.distance(x_adv, X) <= 0.3).all()


def test_filters_alone_change_low_frequencies_only():
    """With next to no steps of the modifier, what changes is that neighbours mix: no pixel leaves the range of its
    neighbourhood.
    """
    wide = FeatureDistance(Pixels(), 5.0)
    x_adv = LowFrequency(wide, kernels=((3, 3),), color=1.0, pixel_step=1e-9, iterations=60)(Linear(), X, Y)
    around = F.pad(X, (1, 1, 1, 1), "reflect")
    assert (x_adv <= F.max_pool2d(around, 3, 1) + 1e-6).all() and (x_adv >= -F.max_pool2d(-around, 3, 1) - 1e-6).all()
    assert (gain(x_adv) > 1).all()


def test_behind_noise_with_eot():
    x_adv = LowFrequency(L2, kernels=KERNELS, iterations=60, eot=8)(BehindNoise(Linear(), 0.1), X, Y)
    assert (gain(x_adv) > 0.6 * 0.3 * Linear().w.norm()).all()


def test_result_is_within_the_bound_whatever_the_steps():
    """Steps far too long leave the bound at once; what comes back is inside all the same, and no worse than the
    image.
    """
    attack = LowFrequency(L2, kernels=KERNELS, iterations=3, filter_step=3.0, pixel_step=1.0)
    x_adv = attack(Linear(), X.float(), Y)
    distance = attack.threat.distance(x_adv, X.float())
    assert (distance <= 0.3).all() and (distance > 0).all() and x_adv.dtype == torch.float32
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and not x_adv.requires_grad
    assert (gain(x_adv) > -1e-3).all()


def test_black_and_white_pixels():
    x = X.round()
    x_adv = LowFrequency(L2, kernels=KERNELS, iterations=5)(Linear(), x, Y)
    assert x_adv.isfinite().all() and x_adv.min() >= 0 and x_adv.max() <= 1


def test_targets_stop_start_and_cost():
    wide = FeatureDistance(Pixels(), 3.0)
    with count_cost() as cost:
        x_adv = LowFrequency(wide, kernels=KERNELS, pixel_step=0.05, stop_draws=2)(Linear(), X, Y, targets=1 - Y)
    assert torch.equal(Linear()(x_adv).argmax(1), 1 - Y)
    assert cost.backward < 3 * 100 and cost.forward == cost.backward + 2 * 3
    with count_cost() as cost:
        LowFrequency(wide, kernels=KERNELS, stop_draws=2)(Linear(), X, Y, start=(X + 1.2 * (x_adv - X)).clamp(0, 1))
    assert cost.backward == 3  # already there


def test_result_depends_on_keys_not_on_the_batch():
    model, keys = BehindNoise(Linear(), 0.1), torch.arange(3) + 100
    attack = LowFrequency(L2, kernels=KERNELS, iterations=3, eot=2, restarts=2, batch_size=2)
    whole = attack(model, X, Y, keys)
    for i in range(3):
        torch.testing.assert_close(attack(model, X[i : i + 1], Y[i : i + 1], keys[i : i + 1]), whole[i : i + 1])
    assert not torch.equal(attack(model, X, Y, keys + 1), whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threat": 0.05}, r"threat must be a FeatureDistance, for instance lpips_distance\(0.05\), got float"),
        ({"kernels": ((4, 3),)}, r"kernels must be pairs of odd positive integers, got \(\(4, 3\),\)"),
        ({"kernels": ()}, r"kernels must be pairs of odd positive integers, got \(\)"),
        ({"color": 0.0}, "color must be a positive number, got 0.0"),
        ({"penalty": -1.0}, "penalty must be a positive number, got -1.0"),
        ({"loss": "cw"}, "loss='cw' is not one of ce, margin, dlr"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        LowFrequency(**{"threat": L2} | arguments)


def test_kernels_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"kernels: \(17, 3\) does not fit images of 8 x 8, whose edges it mirrors: use smaller ones"
    ):
        LowFrequency(L2, kernels=((17, 3),))(Linear(), X, Y)
