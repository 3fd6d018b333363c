import pytest
import torch

from attacks import L2, Linf

X = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DELTA = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("threat", [Linf(8 / 255), L2(0.5)])
def test_projection_is_allowed_and_leaves_allowed_images_alone(threat):
    x_adv = threat.project(X + DELTA, X)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert (threat.distance(x_adv, X) <= threat.epsilon * (1 + 1e-5)).all()
    inside = threat.project(X + 1e-3 * threat.epsilon * threat.direction(DELTA), X)
    torch.testing.assert_close(threat.project(inside, X), inside, rtol=0, atol=1e-7)


def test_projection_is_the_nearest_point():
    """Against the definition: Linf clips each pixel, L2 shortens the whole perturbation."""
    torch.testing.assert_close(Linf(0.1).into_ball(DELTA), torch.where(DELTA.abs() > 0.1, 0.1 * DELTA.sign(), DELTA))
    norms = DELTA.square().sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(L2(0.5).into_ball(DELTA), 0.5 * DELTA / norms[:, None, None, None])


@pytest.mark.parametrize(
    ("threat", "dual"),
    [(Linf(1.0), lambda g: g.abs().sum((1, 2, 3))), (L2(1.0), lambda g: g.square().sum((1, 2, 3)).sqrt())],
)
def test_direction_reaches_the_dual_norm(threat, dual):
    torch.testing.assert_close((threat.direction(DELTA) * DELTA).sum((1, 2, 3)), dual(DELTA))


def test_l2_direction_survives_tiny_and_zero_gradients():
    tiny = L2(1.0).direction(DELTA * 1e-30)
    torch.testing.assert_close(tiny, L2(1.0).direction(DELTA))
    assert torch.equal(L2(1.0).direction(torch.zeros_like(DELTA)), torch.zeros_like(DELTA))


@pytest.mark.parametrize("threat", [Linf(0.3), L2(0.3)])
def test_random_starts_are_inside(threat):
    start = threat.random_start(torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    distances = threat.distance(start, torch.zeros_like(start))
    assert (distances <= 0.3 * (1 + 1e-5)).all()
    assert distances.std() > 0


def test_names():
    assert [str(Linf(8 / 255)), str(Linf(0.1)), str(L2(0.5)), str(L2(1.0))] == [
        "Linf 8/255",
        "Linf 0.1",
        "L2 0.5",
        "L2 1",
    ]


@pytest.mark.parametrize("epsilon", [0, -1, float("nan"), float("inf")])
def test_bad_epsilon(epsilon):
    with pytest.raises(ValueError, match="epsilon must be a positive number"):
        Linf(epsilon)
