import pytest
import torch
from attack_models import BehindNoise
from torch import nn
from torch.nn import functional as F

from attacks import count_cost
from attacks.losses import margin
from attacks.perceptual.spatial import Flow, StAdv, roughness, warp


class Linear(nn.Module):
    """Two classes, linear in (3, 12, 12) images."""

    w = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def forward(self, x):
        z = ((x - 0.5) * self.w.to(x.dtype)).sum((1, 2, 3))
        return torch.stack([-z, z], 1) / 2


def smooth_images(count=3):
    x = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for _ in range(2):
        x = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), "reflect"), 5, 1)
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low)


X = smooth_images()
Y = Linear()(X).argmax(1)


def gain(x_adv, x=X, y=Y):
    return margin(Linear()(x_adv.double()), y) - margin(Linear()(x.double()), y)


def test_no_flow_is_the_identity():
    for x in (X, X.float(), X[..., :7]):
        torch.testing.assert_close(warp(x, torch.zeros(3, *x.shape[2:], 2, dtype=x.dtype)), x, rtol=0, atol=1e-6)


def test_a_uniform_flow_shifts_the_image():
    """A pixel is 2 / w of the flow's units; half a pixel averages two of them."""
    flow = torch.zeros(3, 12, 12, 2, dtype=X.dtype)
    flow[..., 0] = 2 * 2 / 12
    torch.testing.assert_close(warp(X, flow)[..., :-2], X[..., 2:])
    flow = torch.zeros(3, 12, 12, 2, dtype=X.dtype)
    flow[..., 1] = -1 / 12
    torch.testing.assert_close(warp(X, flow)[:, :, 1:], (X[:, :, 1:] + X[:, :, :-1]) / 2)


def test_the_warp_s_gradient():
    flow = (
        0.1 * torch.rand(2, 4, 5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.01
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: warp(X[:2, :1, :4, :5], f), flow)
    assert torch.autograd.gradcheck(roughness, flow)


def test_roughness_is_the_flow_loss_of_the_paper():
    """Each pixel's distance from its four neighbours, by a plain loop."""
    flow = torch.randn(1, 3, 4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = sum(
        (flow[0, i, j] - flow[0, i + a, j + b]).norm()
        for i in range(3)
        for j in range(4)
        for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))
        if 0 <= i + a < 3 and 0 <= j + b < 4
    )
    torch.testing.assert_close(roughness(flow)[0], expected, rtol=1e-5, atol=0)


def exhaustive(bound, steps=15):
    """Without a smoothness term pixels move independently: the best of a grid of flows for each."""
    best = torch.full((3, 12, 12), -torch.inf, dtype=X.dtype)
    toward = torch.where(Y == 1, -1.0, 1.0)[:, None, None]
    for right in torch.linspace(-bound, bound, steps):
        for down in torch.linspace(-bound, bound, steps):
            moved = warp(X, torch.stack([right, down]).to(X.dtype).expand(3, 12, 12, 2))
            best = torch.maximum(best, toward * ((moved - X) * Linear().w).sum(1))
    return best.sum((1, 2))


def test_reaches_most_of_the_best_found_by_trying_all_flows():
    x_adv = StAdv(0.05, smoothness=0.0)(Linear(), X, Y)
    assert (gain(x_adv) > 0.75 * exhaustive(0.05)).all()
    # the published smoothness hardly binds here
    assert (gain(StAdv(0.05)(Linear(), X, Y)) > 0.75 * exhaustive(0.05)).all()


def test_behind_noise_with_eot():
    x_adv = StAdv(0.05, iterations=40, eot=10)(BehindNoise(Linear(), 0.2), X, Y)
    assert (gain(x_adv) > 0.7 * exhaustive(0.05)).all()


def test_smoothness_is_paid_for():
    """A strong weight leaves nearly uniform flows: the image shifts, and less is gained."""
    rough, smooth = (gain(StAdv(0.05, smoothness=weight, iterations=60)(Linear(), X, Y)) for weight in (0.0, 5.0))
    assert (smooth < 0.8 * rough).all()


def test_distance_bounds_the_flow_from_below():
    """A uniform shift is seen for what it is, at most the flow is reported for any other, and an image that no flow
    makes is infinitely far.
    """
    threat = Flow(0.1)
    shifted = warp(X, torch.tensor([0.07, 0.0], dtype=X.dtype).expand(3, 12, 12, 2))
    assert ((threat.distance(shifted, X) > 0.06) & (threat.distance(shifted, X) <= 0.07)).all()
    random = 0.1 * (2 * torch.rand(3, 12, 12, 2, generator=torch.Generator().manual_seed(4), dtype=X.dtype) - 1)
    assert (threat.distance(warp(X, random), X) <= 0.1).all()
    assert torch.equal(threat.distance(X, X), torch.zeros(3, dtype=X.dtype))
    assert threat.distance((0.5 * X).clamp_min(0.9), X).isinf().all()


def test_result_is_allowed_and_float32_works():
    attack = StAdv(0.05, iterations=10)
    x_adv = attack(Linear(), X.float(), Y)
    assert x_adv.dtype == torch.float32 and x_adv.min() >= 0 and x_adv.max() <= 1 and not x_adv.requires_grad
    distance = attack.threat.distance(x_adv, X.float())
    assert ((distance > 0.02) & (distance <= 0.05)).all()
    assert (str(attack.threat), attack.threat.epsilon) == ("StAdv 0.05", 0.05)


def test_targets_stop_and_cost():
    class Three(Linear):
        def forward(self, x):
            two = super().forward(x)
            return torch.cat([two, two.new_full((len(x), 1), -1e3)], 1)

    with count_cost() as cost:
        x_adv = StAdv(0.2, iterations=50, stop_draws=2)(Three(), X, Y, targets=1 - Y)
    assert torch.equal(Three()(x_adv).argmax(1), 1 - Y)
    # two fresh draws of each image confirm, and nothing is left to choose
    assert 3 < cost.backward < 3 * 25 and cost.forward == cost.backward + 2 * 3


def test_result_depends_on_keys_not_on_the_batch():
    model, keys = BehindNoise(Linear(), 0.1), torch.arange(3) + 100
    attack = StAdv(0.05, iterations=3, eot=2, restarts=2, batch_size=2)
    whole = attack(model, X, Y, keys)
    for i in range(3):
        torch.testing.assert_close(attack(model, X[i : i + 1], Y[i : i + 1], keys[i : i + 1]), whole[i : i + 1])
    assert not torch.equal(attack(model, X, Y, keys + 1), whole)


def test_progress_counts_gradients():
    seen = []
    StAdv(iterations=2, restarts=2, batch_size=2)(
        Linear(), X, Y, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(i, 8) for i in range(1, 9)]  # two groups of images


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bound": 0.0}, "bound must be a positive number, got 0.0"),
        ({"iterations": 0}, "iterations must be a positive integer, got 0"),
        ({"step_size": 0.0}, "step_size must be a positive number, got 0.0"),
        ({"smoothness": -1.0}, "smoothness must be a number from 0, got -1.0"),
        ({"loss": "cw"}, "loss='cw' is not one of ce, margin, dlr"),
        ({"stop_draws": -1}, "stop_draws must be an integer from 0, got -1"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        StAdv(**arguments)
