import pytest
import torch
from attack_models import BehindNoise, Linear, LinearMany, away, box_images, classifier, images, nearest
from torch import nn

from attacks import L2, Linf, count_cost
from attacks.ensembles.autoattack import FreshDraws
from attacks.expectation import Expectation
from attacks.gradient.fab import FAB, onto_hyperplane
from attacks.losses import margin

X = images()
Y = Linear()(X).argmax(1)
THREATS = {"Linf": Linf, "L2": L2}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("x", [images(), box_images()], ids=["inside", "box"])
def test_projection_onto_a_hyperplane_in_the_box(norm, x):
    """On the plane, in the box, and as near as bisection finds; from either side."""
    threat, gradient = THREATS[norm](1.0), Linear().w.expand_as(x)
    for sign in (1, -1):
        value = sign * torch.linspace(0.1, 20, 6, dtype=x.dtype)
        d = onto_hyperplane(x, gradient, value, threat)
        torch.testing.assert_close(
            value + (gradient * d).sum((1, 2, 3)), torch.zeros(6, dtype=x.dtype), rtol=0, atol=1e-10
        )
        assert (x + d).min() >= -1e-12 and (x + d).max() <= 1 + 1e-12
        torch.testing.assert_close(
            threat.distance(x + d, x), nearest(x, -sign * gradient, value.abs(), norm), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_projection_out_of_reach_goes_to_the_corner(norm):
    d = onto_hyperplane(X, Linear().w.expand_as(X), torch.full((6,), 1e3, dtype=X.dtype), THREATS[norm](1.0))
    torch.testing.assert_close(X + d, (Linear().w < 0).to(X.dtype).expand_as(X))
    flat = onto_hyperplane(X, torch.zeros_like(X), torch.ones(6, dtype=X.dtype), THREATS[norm](1.0))
    assert torch.equal(flat, torch.zeros_like(X))


@pytest.mark.parametrize("target_classes", [0, 9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("x", [images(), box_images()], ids=["inside", "box"])
def test_distance_of_a_linear_model(norm, x, dtype, target_classes):
    y = Linear()(x).argmax(1)
    expected = nearest(x, away(y), -margin(Linear()(x), y), norm)
    points, distance = FAB(THREATS[norm](0.1), iterations=5, target_classes=target_classes).minimal(
        Linear(), x.to(dtype), y
    )
    assert points.dtype == distance.dtype == dtype
    torch.testing.assert_close(distance.double(), expected, rtol=0.01, atol=0)
    torch.testing.assert_close(THREATS[norm](0.1).distance(points, x.to(dtype)), distance)
    assert (margin(Linear()(points), y) > 0).all() and points.min() >= 0 and points.max() <= 1


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_distance_behind_noise(norm):
    x = box_images()
    y = Linear()(x).argmax(1)
    expected = nearest(x, away(y), -margin(Linear()(x), y), norm)
    _, distance = FAB(THREATS[norm](0.1), iterations=10, eot=64).minimal(BehindNoise(Linear(), 0.004), x, y)
    torch.testing.assert_close(distance, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_luck_does_not_shorten_distances(norm):
    """A single draw a step, with noise of several times the margin: the nearest point that one draw got wrong is much
    too near.
    """
    x = box_images(24)
    y = Linear()(x).argmax(1)
    expected = nearest(x, away(y), -margin(Linear()(x), y), norm)
    _, distance = FAB(THREATS[norm](0.1), iterations=30, eot=8).minimal(BehindNoise(Linear(), 0.1), x, y)
    assert abs((distance / expected).mean() - 1) < 0.1


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_nearest_of_all_classes(norm):
    model, x = LinearMany(), box_images(8)
    y = model(x).argmax(1)
    expected = torch.full((8,), torch.inf, dtype=x.dtype)
    for other in range(5):
        gradient = (model.w[other] - model.w[y]).reshape(x.shape)
        logits = model(x)
        gap = logits.gather(1, y[:, None]).squeeze(1) - logits[:, other]
        expected = torch.where(y == other, expected, torch.minimum(expected, nearest(x, gradient, gap, norm)))
    _, distance = FAB(THREATS[norm](0.1), iterations=10).minimal(model, x, y)
    torch.testing.assert_close(distance, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_targeted(norm):
    """With two targets left out of reach by no third class, the distance is that to the target's region."""
    model, x = LinearMany(3), box_images(8)
    y = model(x).argmax(1)
    targets = (y + 1) % 3
    points, distance = FAB(THREATS[norm](0.1), iterations=30).minimal(model, x, y, targets=targets)
    assert torch.equal(model(points).argmax(1), targets)
    gradient = (model.w[targets] - model.w[y]).reshape(x.shape)
    logits = model(x)
    gap = (logits.gather(1, y[:, None]) - logits.gather(1, targets[:, None])).squeeze(1)
    bound = nearest(x, gradient, gap, norm)
    assert (distance > bound * 0.999).all()
    direct = distance < bound * 1.01
    assert direct.sum() >= 6  # elsewhere the third class lies between


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_call_stays_in_the_threat(norm, random):
    """Images whose boundary is inside are broken; a random model's are moved on to the border, where no draw is
    right.
    """
    x = box_images()
    y = Linear()(x).argmax(1)
    distances = nearest(x, away(y), -margin(Linear()(x), y), norm)
    threat = THREATS[norm](float(distances.median()) * 1.02)
    model = BehindNoise(Linear(), 0.002) if random else Linear()
    x_adv = FAB(threat, iterations=10, eot=4 if random else 1)(model, x, y)
    assert (threat.distance(x_adv, x) <= threat.epsilon * (1 + 1e-6)).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    assert torch.equal(margin(Linear()(x_adv), y) > 0, distances < threat.epsilon)
    if random:
        assert (threat.distance(x_adv, x) > 0.98 * threat.epsilon).all()
    else:
        assert (threat.distance(x_adv, x) < 1.01 * distances).all()


def test_nothing_to_do_and_nothing_to_find():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.stack([1 + 0 * x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1)

    points, distance = FAB(Linf(0.1), iterations=2).minimal(Linear(), X, 1 - Y)
    assert torch.equal(points, X) and torch.equal(distance, torch.zeros(6, dtype=X.dtype))
    with pytest.warns(UserWarning, match="gradient was exactly zero for 6 of 6 images, in up to 2 of 2 steps"):
        points, distance = FAB(Linf(0.1), iterations=2).minimal(Constant(), X, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(points, X) and distance.isinf().all()


def test_nan_does_not_count():
    class Broken(Linear):
        def forward(self, x):
            return super().forward(x) * torch.nan

    with pytest.warns(UserWarning, match="NaN or infinite for 6 of 6 images"):
        points, distance = FAB(Linf(0.1), iterations=2).minimal(Broken(), X, Y)
    assert torch.equal(points, X) and distance.isinf().all()


def test_result_depends_on_keys_not_on_the_batch():
    model, keys = BehindNoise(LinearMany(), 0.1), torch.arange(6) + 100
    y = LinearMany()(X).argmax(1)
    attack = FAB(Linf(0.01), iterations=4, eot=2, restarts=2, target_classes=2, stop_draws=2, batch_size=5)
    whole = attack(model, X, y, keys=keys)
    for i in range(6):
        torch.testing.assert_close(attack(model, X[i : i + 1], y[i : i + 1], keys=keys[i : i + 1]), whole[i : i + 1])
    assert not torch.equal(attack(model, X, y, keys=keys + 1), whole)


def test_cost_is_the_calls_made():
    """The image; two restarts of 5 gradients, 5 evaluations and 12 for each of three rays; the choice between two
    points.
    """
    x, model = box_images(), BehindNoise(Linear(), 0.01)
    y = Linear()(x).argmax(1)
    with count_cost() as cost:
        FAB(Linf(0.1), iterations=5, eot=4, target_classes=0, restarts=2)(model, x, y)
    assert cost.backward == 6 * 4 * 2 * 5
    assert cost.forward == 6 * 4 * (1 + 2 * (5 + 5 + 3 * 12) + 2) == sum(map(len, model.seen))


def test_broken_images_leave_after_a_run():
    model = BehindNoise(LinearMany(), 1e-5)
    y = LinearMany()(X).argmax(1)
    with count_cost() as cost:
        x_adv = FAB(Linf(0.3), iterations=3, eot=2, stop_draws=4)(model, X, y)
    assert cost.backward == 6 * 2 * 3 and (margin(LinearMany()(x_adv), y) > 0).all()


def test_starts_where_it_is_told():
    class Watched(Linear):
        points = ()

        def forward(self, x):
            if x.requires_grad:
                self.points += (x.detach().clone(),)
            return super().forward(x)

    model, start = Watched(), Linf(0.1).project(X + 0.05, X)
    FAB(Linf(0.1), iterations=2, restarts=2)(model, X, Y, start=start)
    assert torch.equal(model.points[0], start) and not torch.equal(model.points[2], start)
    assert (Linf(1.0).distance(model.points[2], X) <= 0.05).all() and not torch.equal(model.points[2], X)


def test_progress_counts_gradients():
    seen = []
    FAB(Linf(0.1), iterations=3, restarts=2)(Linear(), X, Y, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", 0.02), ("L2", 0.25)])
def test_no_weaker_than_the_official_code_on_a_classifier(norm, epsilon):
    """Robust accuracy at most one image above, and distances, on average, at most 1 % above."""
    from pyautoattack.fab_pt import FABAttack_PT

    model, x, y = classifier(16)
    with torch.random.fork_rng():
        official = FABAttack_PT(
            model, norm=norm, n_iter=10, eps=epsilon, targeted=True, n_target_classes=3, device=x.device
        )
        official.eps = 1e9  # otherwise only points within it count
        theirs = official.perturb(x, y)
    threat = THREATS[norm](epsilon)
    points, distance = FAB(threat, iterations=10, target_classes=3).minimal(model, x, y)
    assert (model(points).argmax(1) != y).all()
    other = threat.distance(theirs, x)
    assert distance.mean() < 1.01 * other.mean()
    assert (distance > epsilon).sum() <= (other > epsilon).sum() + 1


def test_no_weaker_than_the_official_code_on_a_noisy_classifier():
    """Robust accuracy under 16 fresh draws: the paired difference is not above its 95 % interval."""
    from pyautoattack.fab_pt import FABAttack_PT

    network, x, y = classifier(12)
    model, threat = BehindNoise(network, 0.03), Linf(0.02)
    with torch.random.fork_rng():
        theirs = FABAttack_PT(
            FreshDraws(model, 5), norm="Linf", n_iter=5, eps=0.02, targeted=True, n_target_classes=2, device=x.device
        ).perturb(x, y)
    ours = FAB(threat, iterations=5, eot=4, target_classes=2)(model, x, y)
    judge, keys = Expectation(model, y, 16, 512), torch.arange(12) + 10**9
    difference = judge.success(ours, keys) - judge.success(theirs, keys)
    assert difference.mean() > -1.96 * difference.std() / 12**0.5
