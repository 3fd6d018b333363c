import logging
import warnings

import pytest
import torch
from attack_models import BehindNoise, Linear, LinearMany, NoisyGradient, away, box_images, classifier, images, worst
from torch import nn

from attacks import L2, AutoAttack, Linf, count_cost
from attacks.ensembles.autoattack import FreshDraws
from attacks.expectation import Expectation
from attacks.gradient.apgd import APGD
from attacks.gradient.ascent import checkpoints
from attacks.losses import cross_entropy, margin

X = images()
Y = Linear()(X).argmax(1)
THREATS = {"Linf": Linf, "L2": L2}


def gain(x_adv, x, y, epsilon, norm):
    """(b,): the increase of the margin as a share of the largest possible."""
    model = Linear().to(x.dtype)
    clean = margin(model(x), y)
    return (margin(model(x_adv), y) - clean) / (margin(model(worst(x, away(y).to(x.dtype), epsilon, norm)), y) - clean)


class Curved(nn.Module):
    """Four classes, far from linear; remembers the points at which it was differentiated."""

    def __init__(self, bend=2.0):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.bend = bend
        self.a = torch.randn(108, 12, generator=generator, dtype=torch.float64)
        self.b = torch.randn(12, 4, generator=generator, dtype=torch.float64)
        self.points = []

    def forward(self, x):
        if x.requires_grad:
            self.points.append(x.detach().clone())
        return torch.sin(self.bend * (x - 0.5).flatten(1) @ self.a) @ self.b


def published(model, x, y, start, epsilon, norm, iterations):
    """Algorithm 1 of arXiv 2003.01690 for one image, line by line: the points at which it needs gradients."""
    points = []

    def project(z):
        delta = z - x
        delta = delta.clamp(-epsilon, epsilon) if norm == "Linf" else delta * min(1, epsilon / float(delta.norm()))
        return (x + delta).clamp(0, 1)

    def value_and_direction(z):
        points.append(z)
        z = z.clone().requires_grad_()
        loss = cross_entropy(model(z), y)
        (g,) = torch.autograd.grad(loss.sum(), z)
        return float(loss.detach()), g.sign() if norm == "Linf" else g / g.norm()

    f, direction = value_and_direction(start)
    previous, current, size = start, start, 2 * epsilon
    best = (f, start, direction)
    last_w, rises, last_best, halved = 0, 0, None, True
    shares = [0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99]
    checks = [-(-round(100 * p) * iterations // 100) for p in shares]
    for k in range(1, iterations):
        ahead = project(current + size * direction)
        alpha = 1 if k == 1 else 0.75
        previous, current = current, project(current + alpha * (ahead - current) + (1 - alpha) * (current - previous))
        new, direction = value_and_direction(current)
        rises, f = rises + (new > f), new
        if new > best[0]:
            best = (new, current, direction)
        if k in checks:
            first = rises < 0.75 * (k - last_w)
            second = not halved and last_best == best[0]
            halved = first or second
            if halved:
                size /= 2
                f, current, direction = best
            last_w, rises, last_best = k, 0, best[0]
    return torch.cat(points)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_deterministic_model_is_attacked_by_the_published_algorithm(norm):
    x, epsilon = box_images(3), {"Linf": 0.15, "L2": 1.5}[norm]
    model = Curved({"Linf": 2.0, "L2": 0.3}[norm])  # steps of L2 on a more bent one magnify rounding errors by 10 each
    y = model(x).argmax(1)
    start = (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)).clamp(0, 1)
    start = THREATS[norm](epsilon).project(start, x)
    x_adv = APGD(THREATS[norm](epsilon), iterations=60)(model, x, y, start=start)
    points = torch.stack(model.points)
    for i in range(3):
        torch.testing.assert_close(
            points[:, i],
            published(model, x[i : i + 1], y[i : i + 1], start[i : i + 1], epsilon, norm, 60),
            rtol=0,
            atol=1e-9,
        )
    assert (points[1:] != points[:-1]).flatten(2).any(2).all()
    margins = torch.stack([margin(model(p), y) for p in points])
    losses = torch.stack([cross_entropy(model(p), y) for p in points])
    assert (margin(model(x_adv), y) >= margins.gather(0, losses.argmax(0)[None])[0] - 1e-12).all()


def test_checkpoints():
    """p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(20) == [5, 9, 12, 14, 16, 18, 19]
    assert checkpoints(20, apart=4) == [5, 9, 14, 18]
    assert checkpoints(1) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", 0.1), ("L2", 1.0)])
@pytest.mark.parametrize("x", [images(), box_images()], ids=["inside", "box"])
def test_reaches_the_optimum_of_a_linear_model(norm, epsilon, loss, x, dtype):
    x = x.to(dtype)
    y = Linear()(x).argmax(1)
    threat = THREATS[norm](epsilon)
    x_adv = APGD(threat, iterations=20, loss=loss)(Linear(), x, y)
    assert x_adv.dtype == dtype and not x_adv.requires_grad
    assert (gain(x_adv, x, y, epsilon, norm) > 0.99).all()
    assert (threat.distance(x_adv, x) <= epsilon * (1 + 1e-5)).all() and x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", 0.1), ("L2", 1.0)])
def test_reaches_the_optimum_behind_noise(norm, epsilon):
    x = box_images()
    y = Linear()(x).argmax(1)
    x_adv = APGD(THREATS[norm](epsilon), iterations=20, eot=4)(BehindNoise(Linear(), 0.1), x, y)
    assert (gain(x_adv, x, y, epsilon, norm) > 0.99).all()


@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", 0.03), ("L2", 0.2)])
def test_lucky_draws_do_not_lead_it(norm, epsilon):
    """With more noise than signal in each gradient, going back to the luckiest iterate loses a quarter of the optimum
    (Linf 0.77, L2 0.88).
    """
    x_adv = APGD(THREATS[norm](epsilon), iterations=60, eot=8, loss="margin")(NoisyGradient(), X, Y)
    assert gain(x_adv, X, Y, epsilon, norm).mean() > 0.9


@pytest.mark.parametrize("epsilon", [0.01, 0.02, 0.03])
def test_targeted_runs_break_what_can_be_broken(epsilon):
    """The largest margins of a linear model with five classes are known for each of the four ways out."""
    model, x = LinearMany(), box_images(20)
    y = model(x).argmax(1)
    points = [worst(x, (model.w[other] - model.w[y]).reshape(x.shape), epsilon, "Linf") for other in range(5)]
    best = torch.stack([margin(model(point), y) for point in points]).amax(0)
    x_adv = APGD(Linf(epsilon), iterations=30, target_classes=9)(model, x, y)
    near = best.abs() < 0.02 * (best - margin(model(x), y))
    assert torch.equal((margin(model(x_adv), y) > 0)[~near], (best > 0)[~near])
    assert near.sum() <= 2 and (best > 0).any() and (best < 0).any()


def test_targeted_runs_of_two_classes_fall_back_to_the_margin():
    x_adv = APGD(Linf(0.03), iterations=10, target_classes=9)(Linear(), X, Y)
    assert (gain(x_adv, X, Y, 0.03, "Linf") > 0.99).all()


def test_likely_classes_are_those_of_the_mean_logits():
    model = BehindNoise(LinearMany(), 0.3)
    labels, keys = torch.zeros(6, dtype=torch.int64), torch.arange(6)
    expectation = Expectation(model, labels, 40, 64)
    logits = expectation.logits(X, keys)
    torch.testing.assert_close(logits, LinearMany()(X), rtol=0, atol=5 * 0.3 * 12 / 40**0.5)
    assert torch.equal(expectation.likely(X, keys, 3), logits[:, 1:].argsort(dim=1, descending=True)[:, :3] + 1)
    assert expectation.likely(X, keys, 9).shape == (6, 4)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("threat", [Linf(0.2), L2(3.0)])
def test_targeted(threat, loss):
    model = LinearMany()
    y = model(X).argmax(1)
    targets = (y + 2) % 5
    x_adv = APGD(threat, iterations=20, loss=loss, target_classes=9)(model, X, y, targets=targets)
    assert torch.equal(model(x_adv).argmax(1), targets)


def test_result_depends_on_keys_not_on_the_batch():
    model, keys = BehindNoise(LinearMany(), 0.2), torch.arange(6) + 100
    y = LinearMany()(X).argmax(1)
    attack = APGD(Linf(0.01), iterations=7, eot=2, restarts=2, target_classes=2, stop_draws=3, batch_size=5)
    whole = attack(model, X, y, keys=keys)
    for i in range(6):
        torch.testing.assert_close(attack(model, X[i : i + 1], y[i : i + 1], keys=keys[i : i + 1]), whole[i : i + 1])
    assert not torch.equal(attack(model, X, y, keys=keys + 1), whole)


def test_draws_of_gradients_are_all_different():
    class Watched(NoisyGradient):
        differentiated = ()

        def forward(self, x, keys=None):
            if x.requires_grad:
                self.differentiated += tuple(keys.tolist())
            return super().forward(x, keys)

    model = Watched()
    APGD(Linf(0.02), iterations=10, eot=4, restarts=2)(model, X, Y)
    assert len(model.differentiated) == len(set(model.differentiated)) == 2 * 10 * 4 * 6
    assert not set(model.differentiated) & set(range(6))


@pytest.mark.parametrize(("eot", "expected"), [(1, 2 * (20 + 4)), (4, 4 * 2 * (20 + 4 * 4 + 6))])
def test_cost_is_the_calls_made(eot, expected):
    """Two runs of 20 gradients each; comparisons of 4 points; random: of 6, and of 4 at each of 4 checkpoints."""
    model = BehindNoise(Linear(), 0.1) if eot > 1 else Linear()
    with count_cost() as cost:
        APGD(Linf(0.02), iterations=20, eot=eot, restarts=2)(model, X, Y)
    assert cost.backward == 6 * 2 * 20 * eot
    assert cost.forward == 6 * expected
    if eot > 1:
        assert cost.forward == sum(map(len, model.seen))


def test_broken_images_leave():
    """A single image far from the boundary costs what it costs alone."""
    x = torch.cat([X, X[:1]])
    x[-1] = (0.5 + 0.3 * Linear().w[0].sign()).clamp(0, 1)
    y = Linear()(x).argmax(1)
    model = BehindNoise(Linear(), 0.01)
    attack = APGD(Linf(0.1), iterations=10, eot=2, stop_draws=4)
    with count_cost() as alone:
        attack(model, x[-1:], y[-1:], keys=torch.tensor([6]))
    with count_cost() as together:
        x_adv = attack(model, x, y)
    assert alone.backward == 20 and together.backward <= 20 + 6 * 2 * 2
    assert (margin(Linear()(x_adv), y)[:-1] > 0).all() and margin(Linear()(x_adv), y)[-1] < 0


def test_a_lucky_draw_does_not_end_an_image():
    """Every second draw is wrong whatever the image: no image may leave."""

    class Coin(Linear):
        def forward(self, x, keys=None):
            return super().forward(x) * torch.where(keys % 2 == 0, 1.0, -1.0)[:, None]

    with count_cost() as cost, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        APGD(Linf(0.01), iterations=10, eot=1, stop_draws=20)(Coin(), X, Y)
    assert cost.backward == 60


def test_nan_is_never_best():
    class Breaking(Linear):
        """NaN where the first pixel has moved up by more than 0.01."""

        def forward(self, x):
            return (
                super().forward(x) + torch.where(x[:, 0, 0, 0] > X[: len(x), 0, 0, 0] + 0.01, torch.nan, 0.0)[:, None]
            )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x_adv = APGD(Linf(0.03), iterations=20)(Breaking(), X, Y)
        assert (Breaking()(x_adv)).isfinite().all()

    class Broken(Linear):
        def forward(self, x):
            return super().forward(x) * torch.nan

    with pytest.warns(UserWarning, match="gradient was NaN or infinite for 6 of 6 images, in up to 10 of 10 steps"):
        x_adv = APGD(Linf(0.03), iterations=5, eot=2, stop_draws=1, restarts=2)(Broken(), X, Y)
    assert x_adv.isfinite().all() and (Linf(0.03).distance(x_adv, X) <= 0.03 + 1e-9).all()


def test_dead_gradients_are_reported():
    class Detached(Linear):
        def forward(self, x):
            return super().forward(x.detach()) + 0 * x.sum()

    with pytest.warns(UserWarning, match="gradient was exactly zero for 2 of 6 images, in up to 4 of 4 steps"):
        APGD(Linf(0.1), iterations=4)(Detached(), X, Y)


def test_starts_where_it_is_told():
    model = Curved()
    start = Linf(0.1).project(X + 0.05, X)
    APGD(Linf(0.1), iterations=3, restarts=2)(model, X, Y, start=start)
    assert torch.equal(model.points[0], start) and not torch.equal(model.points[3], start)


def test_progress_counts_gradients():
    seen = []
    APGD(Linf(0.1), iterations=3, restarts=2)(Linear(), X, Y, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_parameters_get_no_gradient():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 5)).double()
    with torch.no_grad():
        APGD(Linf(0.1), iterations=3, target_classes=2)(model, X, Y)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("threat", "name"), [(Linf(0.02), "apgd-ce"), (L2(0.25), "apgd-ce"), (Linf(0.02), "apgd-t")])
def test_no_weaker_than_the_official_code_on_a_classifier(threat, name):
    model, x, y = classifier(16)
    theirs = AutoAttack(threat, version="custom", attacks=(name,), iterations=6)(model, x, y)
    ours = APGD(threat, iterations=6, target_classes=9 if name == "apgd-t" else 0, stop_draws=1)(model, x, y)
    robust = [int((model(z).argmax(1) == y).sum()) for z in (ours, theirs)]
    assert robust[0] <= robust[1] + 1


def test_no_weaker_than_the_official_code_on_a_noisy_classifier():
    """Robust accuracy under 16 fresh draws: the paired difference is not above its 95 % interval."""
    from pyautoattack.autopgd_base import APGDAttack

    network, x, y = classifier(24)
    model = BehindNoise(network, 0.03)
    with torch.random.fork_rng():
        official = APGDAttack(
            FreshDraws(model, 5),
            n_iter=6,
            norm="Linf",
            eps=0.02,
            eot_iter=4,
            device=x.device,
            logger=logging.getLogger("official"),
        )
        theirs = official.perturb(x, y)
    ours = APGD(Linf(0.02), iterations=6, eot=4)(model, x, y)
    judge, keys = Expectation(model, y, 16, 512), torch.arange(24) + 10**9
    difference = judge.success(ours, keys) - judge.success(theirs, keys)
    assert difference.mean() > -1.96 * difference.std() / 24**0.5


def test_dlr_needs_three_classes():
    with pytest.raises(ValueError, match='loss="dlr" needs at least 3 classes, got 2: use "margin"'):
        APGD(Linf(0.01), loss="dlr")(Linear(), X, Y)
