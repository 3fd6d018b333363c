import pytest
import torch
from attack_models import BehindNoise
from torch import nn

from attacks import count_cost
from attacks.losses import margin
from attacks.perceptual.recolor import ColorChange, ReColorAdv, recolor, to_luv, to_rgb

SMALL = (4, 6, 6)


class Linear(nn.Module):
    """Two classes, linear in the sums of the channels of (3, 6, 6) images."""

    w = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)[None, :, None, None]

    def forward(self, x):
        z = ((x - 0.5) * self.w.to(x.dtype)).sum((1, 2, 3))
        return torch.stack([-z, z], 1) / 2


X = 0.2 + 0.6 * torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = Linear()(X).argmax(1)


def gain(x_adv, x=X, y=Y):
    return margin(Linear()(x_adv), y) - margin(Linear()(x), y)


def test_cieluv_of_known_colours():
    """White, red and black (CIE 1976, D65): L* u* v* = (100, 0, 0), (53.24, 175.0, 37.8) and 0."""
    rgb = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.float64)[:, :, None, None]
    luv = torch.tensor([[100.0, 0, 0], [53.24, 175.0, 37.8], [0, 0, 0]], dtype=torch.float64)
    scaled = torch.stack([luv[:, 0] / 100, (luv[:, 1] + 100) / 200, (luv[:, 2] + 100) / 200], 1)
    torch.testing.assert_close(to_luv(rgb).flatten(1), scaled, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_cieluv_and_back(dtype, tolerance):
    """Corners and near-black included."""
    steps = torch.tensor([0.0, 1e-3, 0.02, 0.3, 1.0], dtype=dtype)
    rgb = torch.cartesian_prod(steps, steps, steps)[:, :, None, None]
    torch.testing.assert_close(to_rgb(to_luv(rgb)), rgb, rtol=0, atol=tolerance)


def test_no_change_is_the_identity_and_a_constant_one_moves_all_colours_alike():
    torch.testing.assert_close(recolor(X, torch.zeros(3, 3, 6, 6, 4, dtype=X.dtype)), X)
    change = torch.tensor([0.02, -0.01, 0.01], dtype=X.dtype)[None, :, None, None, None].expand(3, 3, 6, 6, 4)
    torch.testing.assert_close(
        to_luv(recolor(X, change)) - to_luv(X), change[..., 0, 0, :1, None].expand(3, 3, 1, 1).expand_as(X)
    )


def test_the_grid_s_axes_are_l_u_v():
    """A change of L* alone at the greatest L* alone brightens bright pixels and leaves dark ones."""
    change = torch.zeros(1, 3, 5, 5, 2, dtype=X.dtype)
    change[:, 0, :, :, 1] = 0.1
    greys = torch.tensor([0.0, 0.5, 0.9], dtype=X.dtype).expand(1, 3, 1, 3)
    light = to_luv(greys)[0, 0, 0]
    torch.testing.assert_close(to_luv(recolor(greys, change))[0, 0, 0] - light, 0.1 * light)


def test_the_gradient_reaches_every_grid_point_in_use():
    change = (
        0.01 * torch.randn(1, 3, 3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=X.dtype)
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: recolor(X[:1, :, :3, :3], c), change)


def test_reaches_the_best_uniform_change():
    """One change of all colours is among the functions of colour: without smoothness at least the best of a grid of
    those is found, and little less with it.
    """
    best = torch.full((3,), -torch.inf, dtype=X.dtype)
    steps = torch.linspace(-0.06, 0.06, 7, dtype=X.dtype)
    for shift in torch.cartesian_prod(steps, steps, steps):
        best = torch.maximum(best, gain(recolor(X, shift[None, :, None, None, None].expand(3, 3, 2, 2, 2)).clamp(0, 1)))
    assert (gain(ReColorAdv(smoothness=0.0, resolution=SMALL)(Linear(), X, Y)) > 0.99 * best).all()
    assert (gain(ReColorAdv(resolution=SMALL)(Linear(), X, Y)) > 0.9 * best).all()


def test_behind_noise_with_eot():
    x_adv = ReColorAdv(resolution=SMALL, eot=5)(BehindNoise(Linear(), 0.2), X, Y)
    assert (gain(x_adv) > 0.9 * gain(ReColorAdv(resolution=SMALL)(Linear(), X, Y))).all()


def test_result_is_allowed_where_colours_are_clipped_too():
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(2)).round()  # corners of the colour cube
    attack = ReColorAdv(bound=0.1, iterations=20, step_size=0.02, resolution=SMALL)
    x_adv = attack(Linear(), x, torch.zeros(8, dtype=torch.int64))
    distance = attack.threat.distance(x_adv, x)
    assert x_adv.dtype == torch.float32 and x_adv.min() >= 0 and x_adv.max() <= 1
    assert (distance <= 0.1).all() and distance.max() > 0.05
    assert (str(attack.threat), attack.threat.epsilon) == ("ReColorAdv 0.1", 0.1)


def test_equal_colours_change_alike():
    x = X.clone()
    x[:, :, 0, 0] = x[:, :, 5, 5]
    x_adv = ReColorAdv(iterations=10, resolution=SMALL)(Linear(), x, Y)
    torch.testing.assert_close(x_adv[:, :, 0, 0], x_adv[:, :, 5, 5])


def test_targets_stop_and_cost():
    with count_cost() as cost:
        x_adv = ReColorAdv(0.3, iterations=80, step_size=0.02, resolution=SMALL, stop_draws=2)(
            Linear(), X, Y, targets=1 - Y
        )
    assert torch.equal(Linear()(x_adv).argmax(1), 1 - Y)
    assert 3 < cost.backward < 3 * 80 and cost.forward == cost.backward + 2 * 3


def test_result_depends_on_keys_not_on_the_batch():
    model, keys = BehindNoise(Linear(), 0.1), torch.arange(3) + 100
    attack = ReColorAdv(iterations=3, eot=2, restarts=2, resolution=SMALL)
    whole = attack(model, X, Y, keys)
    for i in range(3):
        torch.testing.assert_close(attack(model, X[i : i + 1], Y[i : i + 1], keys[i : i + 1]), whole[i : i + 1])
    assert not torch.equal(attack(model, X, Y, keys + 1), whole)


def test_grey_images_are_refused():
    with pytest.raises(ValueError, match="changes the colours of RGB images, x has 1 channel: use StAdv or a norm"):
        ReColorAdv()(Linear(), X[:, :1], Y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bound": -0.1}, "bound must be a positive number, got -0.1"),
        ({"resolution": (16, 32)}, r"resolution must be three integers from 2, got \(16, 32\)"),
        ({"step_size": 0.0}, "step_size must be a positive number, got 0.0"),
        ({"smoothness": float("nan")}, "smoothness must be a number from 0, got nan"),
        ({"eot": 0}, "eot must be a positive integer, got 0"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReColorAdv(**arguments)
    with pytest.raises(ValueError, match="epsilon must be a positive number, got 0"):
        ColorChange(0)
