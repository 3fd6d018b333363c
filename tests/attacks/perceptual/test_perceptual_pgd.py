import sys

import pytest
import torch
from attack_models import BehindNoise, Linear, NoisyGradient, images
from torch import nn
from torch.nn import functional as F

from attacks import count_cost
from attacks.losses import margin
from attacks.perceptual.feature_distance import FeatureDistance, lpips_distance
from attacks.perceptual.perceptual_pgd import PerceptualPGD

X = images(4)
Y = Linear()(X).argmax(1)


class LinearFeatures(nn.Module):
    """Vectors A x."""

    def __init__(self, rows=130):
        super().__init__()
        self.register_buffer(
            "a", torch.randn(rows, 108, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        )

    def forward(self, x):
        return x.flatten(1) @ self.a.to(x.dtype).T


class Convolutions(nn.Module):
    """Two feature maps of random convolutions, float32 parameters."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(8)
        self.first = nn.Parameter(0.3 * torch.randn(6, 3, 3, 3, generator=generator))
        self.second = nn.Parameter(0.3 * torch.randn(8, 6, 3, 3, generator=generator))

    def forward(self, x):
        first = F.conv2d(x, self.first, padding=1).relu()
        return [first, F.conv2d(first, self.second, stride=2, padding=1).relu()]


def gain(x_adv, x=X, y=Y):
    return margin(Linear()(x_adv), y) - margin(Linear()(x), y)


def optimum(features, epsilon):
    """max w . d over |A d| <= epsilon is epsilon sqrt(w (A^T A)^-1 w)."""
    w = Linear().w.flatten()
    return epsilon * (w @ torch.linalg.solve(features.a.T @ features.a, w)).sqrt()


def test_distance_is_that_of_the_paper():
    """By a plain loop: unit channels at each position, over the square root of the positions, all maps together."""
    features = Convolutions().double()
    x_adv = (X + 0.1 * torch.randn(X.shape, generator=torch.Generator().manual_seed(9), dtype=X.dtype)).clamp(0, 1)
    expected = torch.zeros(4, dtype=X.dtype)
    for a, b in zip(features(x_adv), features(X), strict=True):
        difference = F.normalize(a, dim=1) - F.normalize(b, dim=1)
        expected += difference.square().sum((1, 2, 3)) / (a.shape[2] * a.shape[3])
    torch.testing.assert_close(
        FeatureDistance(features, 1.0).distance(x_adv, X), expected.detach().sqrt(), check_dtype=False
    )
    torch.testing.assert_close(FeatureDistance(features, 1.0, squared=True).distance(x_adv, X), expected.detach())


def test_projection_goes_back_along_the_segment():
    """In linear features the distance grows with the factor: the projection shortens the change to exactly epsilon, and
    leaves allowed images alone.
    """
    threat = FeatureDistance(LinearFeatures(), 0.5)
    change = 0.1 * torch.randn(X.shape, generator=torch.Generator().manual_seed(9), dtype=X.dtype)
    factor = (0.5 / threat.distance(X + change, X))[:, None, None, None]
    assert (factor < 1).all()
    torch.testing.assert_close(threat.project(X + change, X), X + factor * change, rtol=1e-3, atol=1e-5)
    assert (threat.distance(threat.project(X + change, X), X) <= 0.5).all()
    inside = X + 0.5 * factor * change
    torch.testing.assert_close(threat.project(inside, X), inside)


def test_reaches_99_percent_of_the_optimum_in_linear_features():
    features = LinearFeatures()
    threat = FeatureDistance(features, 0.5)
    x_adv = PerceptualPGD(threat, cg_iterations=60)(Linear(), X, Y)
    assert (gain(x_adv) > 0.99 * optimum(features, 0.5)).all() and (threat.distance(x_adv, X) <= 0.5).all()


def test_features_blind_to_some_directions_leave_them_to_the_box():
    """Half of the pixels are not seen: they move until [0, 1] stops them."""

    class Half(nn.Module):
        def forward(self, x):
            return x[:, :, :3].flatten(1)

    threat = FeatureDistance(Half(), 0.1)
    x_adv = PerceptualPGD(threat)(Linear(), X, Y)
    toward = torch.where(Y == 1, -1.0, 1.0)[:, None, None, None] * Linear().w
    assert (threat.distance(x_adv, X) <= 0.1).all()
    strong = toward[:, :, 3:].abs() > 0.5
    assert ((x_adv[:, :, 3:] == (toward[:, :, 3:] > 0)) | ~strong).all()


def test_behind_noise_with_eot():
    features = LinearFeatures()
    few, many = (
        gain(PerceptualPGD(FeatureDistance(features, 0.5), iterations=10, eot=eot)(NoisyGradient(), X, Y)).mean()
        for eot in (1, 32)
    )
    assert many > 0.8 * optimum(features, 0.5) > few


def test_result_is_within_the_bound_of_nonlinear_features():
    """float32 images and network; the bound binds."""
    threat = FeatureDistance(Convolutions(), 0.2)
    model, x = Linear(), X.float()
    x_adv = PerceptualPGD(threat, iterations=10)(model, x, Y)
    distance = threat.distance(x_adv, x)
    assert (distance <= 0.2).all() and (distance > 0.15).all() and not x_adv.requires_grad
    assert x_adv.dtype == torch.float32 and x_adv.min() >= 0 and x_adv.max() <= 1
    assert (gain(x_adv.double()) > 0).all()
    assert all(parameter.grad is None for parameter in threat.features.parameters())


def test_targets_stop_start_and_cost():
    threat = FeatureDistance(LinearFeatures(), 3.0)
    with count_cost() as cost:
        x_adv = PerceptualPGD(threat, stop_draws=2)(Linear(), X, Y, targets=1 - Y)
    assert torch.equal(Linear()(x_adv).argmax(1), 1 - Y)
    assert cost.backward < 4 * 40 and cost.forward == cost.backward + 2 * 4
    with count_cost() as cost:
        again = PerceptualPGD(threat, stop_draws=2)(Linear(), X, Y, start=x_adv)
    assert torch.equal(again, x_adv) and (cost.forward, cost.backward) == (4 * 3, 4)


def test_result_depends_on_keys_not_on_the_batch():
    model, keys = BehindNoise(Linear(), 0.1), torch.arange(4) + 100
    attack = PerceptualPGD(FeatureDistance(Convolutions().double(), 0.2), iterations=3, eot=2, restarts=2, batch_size=3)
    whole = attack(model, X, Y, keys)
    for i in range(4):
        torch.testing.assert_close(attack(model, X[i : i + 1], Y[i : i + 1], keys[i : i + 1]), whole[i : i + 1])
    assert not torch.equal(attack(model, X, Y, keys + 1), whole)


def test_names():
    assert str(FeatureDistance(Convolutions(), 0.5)) == "feature distance (Convolutions) 0.5"
    assert str(FeatureDistance(Convolutions(), 0.05, squared=True, name="LPIPS-vgg")) == "LPIPS-vgg 0.05"


def test_lpips_is_that_of_the_package(tmp_path, monkeypatch):
    """Same numbers as the package, with random backbone weights in the place where torchvision keeps its own."""
    lpips = pytest.importorskip("lpips", reason="needs the package lpips")
    import torchvision.models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        ValueError, match="needs the weights https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth at"
    ):
        lpips_distance(0.05, "squeeze")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = torchvision.models.squeezenet1_1()
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
        torch.save(backbone.state_dict(), tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
        before = torch.random.get_rng_state()
        threat = lpips_distance(0.05, "squeeze")
        assert torch.equal(torch.random.get_rng_state(), before)
        reference = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    reference.net.load_state_dict(threat.features.model.net.state_dict())
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    x_adv = (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    torch.testing.assert_close(
        threat.distance(x_adv, x), reference(x_adv, x, normalize=True).flatten().detach(), rtol=1e-3, atol=1e-7
    )
    assert str(threat) == "LPIPS-squeeze 0.05"


def test_without_the_package_lpips_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(
        ValueError,
        match=r"LPIPS needs the package lpips: pip install lpips, or pass a network of your own as FeatureDistance",
    ):
        lpips_distance()
    with pytest.raises(ValueError, match="net='resnet' is not one of alex, vgg, squeeze"):
        lpips_distance(net="resnet")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            nn.Flatten(2),
            r"features must give tensors of shape \(4, channels, rows, columns\) or \(4, d\), got \[\(4, 3, 36\)\]",
        ),
        (lambda x: x, "features must be a torch.nn.Module that maps images to features, got function"),
    ],
)
def test_bad_features(features, message):
    with pytest.raises(ValueError, match=message):
        PerceptualPGD(FeatureDistance(features, 0.1))(Linear(), X, Y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threat": 0.5}, r"threat must be a FeatureDistance, for instance lpips_distance\(0.05\), got float"),
        ({"cg_iterations": 0}, "cg_iterations must be a positive integer, got 0"),
        ({"step_size": 0.0}, "step_size must be a positive number, got 0.0"),
        ({"stop_draws": 1.5}, "stop_draws must be an integer from 0, got 1.5"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        PerceptualPGD(**{"threat": FeatureDistance(LinearFeatures(), 0.5)} | arguments)
    with pytest.raises(ValueError, match="epsilon must be a positive number, got 0"):
        FeatureDistance(LinearFeatures(), 0)
