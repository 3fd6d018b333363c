import warnings

import pytest
import torch
from attack_models import BehindNoise, Linear, LinearMany, box_images, classifier, images

from attacks import L2, AutoAttack, Linf, count_cost
from attacks.ensembles.eot_autoattack import PARTS, EOTAutoAttack
from attacks.expectation import Expectation
from attacks.gradient.apgd import APGD
from attacks.gradient.fab import FAB
from attacks.losses import margin

X = images()
Y = Linear()(X).argmax(1)
SHORT = {"iterations": 6, "eot": 2, "queries": 30, "stop_draws": 4}


class Part:
    """A stand-in for a part: gives back its points and remembers the images that it got."""

    def __init__(self, points):
        self.points = points
        self.got = None

    def __call__(self, model, x, y, keys, progress, *, targets, start):
        self.got = [int(i) for i in (X[None] == x[:, None]).flatten(2).all(2).int().argmax(1)]
        progress(1, 2)
        return self.points[self.got]


def with_parts(monkeypatch, *points):
    parts = [Part(p) for p in points]
    queue = iter(parts)
    monkeypatch.setattr(EOTAutoAttack, "_part", lambda self, name: next(queue))
    return parts


def test_parts_get_the_images_that_stand_and_the_largest_mean_margin_wins(monkeypatch):
    """Images 0 and 1 fall to the first part, 2 to the second; the second one's point for 3 is better than the image,
    that for 4 is worse.
    """
    away = torch.where((Y == 1)[:, None, None, None], -1.0, 1.0) * Linear().w.sign()
    clean = margin(Linear()(X), Y)
    to_boundary = (-clean / Linear().w.abs().sum())[:, None, None, None] * away
    share = torch.tensor([[2.0, 2.0, -0.5, -0.5, -0.5, -0.5], [0, 0, 3.0, 0.5, -0.5, -0.5]], dtype=X.dtype)
    first, second = (X + s[:, None, None, None] * to_boundary for s in share)
    parts = with_parts(monkeypatch, first, second)
    seen = []
    attack = EOTAutoAttack(Linf(0.5), attacks=("apgd-ce", "apgd-t"), eot=16, stop_draws=4)
    x_adv = attack(BehindNoise(Linear(), 1e-7), X, Y, progress=lambda done, total: seen.append((done, total)))
    assert parts[0].got == [0, 1, 2, 3, 4, 5] and parts[1].got == [2, 3, 4, 5]
    torch.testing.assert_close(
        x_adv, torch.stack([first[0], first[1], second[2], second[3], X[4], X[5]]), rtol=0, atol=0
    )
    assert seen == [(50, 200), (150, 200)]


def test_without_stop_draws_every_part_gets_every_image(monkeypatch):
    parts = with_parts(monkeypatch, X, X)
    EOTAutoAttack(Linf(0.1), attacks=("apgd-ce", "apgd-t"), stop_draws=0)(Linear(), X, 1 - Y)
    assert parts[0].got == parts[1].got == [0, 1, 2, 3, 4, 5]


def test_images_that_are_wrong_anyway_are_left_alone(monkeypatch):
    parts = with_parts(monkeypatch, X)
    y = torch.cat([1 - Y[:2], Y[2:]])
    x_adv = EOTAutoAttack(Linf(0.1), attacks=("apgd-ce",))(Linear(), X, y)
    assert parts[0].got == [2, 3, 4, 5] and torch.equal(x_adv, X)


def test_a_lucky_draw_is_no_success(monkeypatch):
    """Every second draw is wrong: an official verdict takes such images for broken, here all parts see them."""

    class Coin(Linear):
        def forward(self, x, keys=None):
            return super().forward(x) * torch.where(keys % 2 == 0, 1.0, -1.0)[:, None]

    parts = with_parts(monkeypatch, X, X)
    EOTAutoAttack(Linf(0.1), attacks=("apgd-ce", "apgd-t"), stop_draws=24)(Coin(), X, Y)
    assert parts[0].got == parts[1].got == [0, 1, 2, 3, 4, 5]


def test_parts_are_those_of_the_official_ensemble():
    attack = EOTAutoAttack(L2(0.5), iterations=7, eot=3, stop_draws=2, batch_size=9)
    shared = {"eot": 3, "stop_draws": 2, "batch_size": 9}
    assert [attack._part(name) for name in ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t")] == [
        APGD(L2(0.5), iterations=7, loss="ce", **shared),
        APGD(L2(0.5), iterations=7, loss="dlr", **shared),
        APGD(L2(0.5), iterations=7, loss="dlr", target_classes=9, **shared),
        FAB(L2(0.5), iterations=7, target_classes=0, **shared),
        FAB(L2(0.5), iterations=7, target_classes=9, **shared),
    ]
    assert attack.attacks == ("apgd-ce", "apgd-t", "fab-t", "square") and set(attack.attacks) <= set(PARTS)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(1.5)])
def test_breaks_a_linear_model_within_the_ball(threat):
    x = box_images()
    y = LinearMany()(x).argmax(1)
    x_adv = EOTAutoAttack(threat, **SHORT)(BehindNoise(LinearMany(), 0.02), x, y)
    assert (margin(LinearMany()(x_adv), y) > 0).all()
    assert (threat.distance(x_adv, x) <= threat.epsilon * (1 + 1e-5)).all() and x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize("threat", [Linf(0.2), L2(3.0)])
def test_targeted(threat):
    model = LinearMany()
    y = model(X).argmax(1)
    targets = (y + 2) % 5
    x_adv = EOTAutoAttack(threat, iterations=10, eot=1, queries=30)(model, X, y, targets=targets)
    assert torch.equal(model(x_adv).argmax(1), targets)


def test_result_depends_on_keys_not_on_the_batch():
    model, keys = BehindNoise(LinearMany(), 0.1), torch.arange(6) + 100
    y = LinearMany()(X).argmax(1)
    attack = EOTAutoAttack(Linf(0.004), **SHORT, batch_size=7)
    whole = attack(model, X, y, keys=keys)
    for i in range(6):
        torch.testing.assert_close(attack(model, X[i : i + 1], y[i : i + 1], keys=keys[i : i + 1]), whole[i : i + 1])
    assert not torch.equal(attack(model, X, y, keys=keys + 1), whole)


def test_cost_is_the_calls_made():
    model = BehindNoise(LinearMany(), 0.1)
    with count_cost() as cost:
        EOTAutoAttack(Linf(0.004), **SHORT)(model, X, LinearMany()(X).argmax(1))
    assert cost.forward == sum(map(len, model.seen)) and cost.backward > 0


def test_nan_everywhere_gives_the_image_back():
    class Broken(Linear):
        def forward(self, x):
            return super().forward(x) * torch.nan

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x_adv = EOTAutoAttack(Linf(0.1), **SHORT)(Broken(), X, Y)
    assert torch.equal(x_adv, X)


def test_no_weaker_than_the_official_ensemble_on_a_noisy_classifier():
    """Robust accuracy under 16 fresh draws: the paired difference is not above its 95 % interval."""
    network, x, y = classifier(12)
    model, threat = BehindNoise(network, 0.03), Linf(0.02)
    theirs = AutoAttack(threat, version="custom", attacks=("apgd-ce",), iterations=5, eot=4)(model, x, y)
    ours = EOTAutoAttack(threat, iterations=5, eot=4, attacks=("apgd-ce", "apgd-dlr"))(model, x, y)
    judge, keys = Expectation(model, y, 16, 512), torch.arange(12) + 10**9
    difference = judge.success(ours, keys) - judge.success(theirs, keys)
    assert difference.mean() > -1.96 * difference.std() / 12**0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attacks": ("pgd",)}, "attacks: 'pgd' is not one of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square"),
        ({"attacks": ()}, "attacks must be one or more of apgd-ce"),
        ({"attacks": "square"}, "attacks must be one or more of apgd-ce, .*, got 'square'"),
        ({"eot": 0}, "eot must be a positive integer, got 0"),
        ({"stop_draws": -1}, "stop_draws must be an integer from 0, got -1"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        EOTAutoAttack(Linf(0.1), **arguments)


@pytest.mark.parametrize(
    ("x", "y", "more", "message"),
    [
        (X + 1, Y, {}, r"x must lie in \[0, 1\]"),
        (X, Y, {"targets": Y}, "targets must differ from the labels y, 6 of 6 are equal"),
        (X, Y, {"start": X.clamp(max=0.5)}, "start must lie within epsilon=0.01 of x"),
    ],
)
def test_bad_inputs(x, y, more, message):
    with pytest.raises(ValueError, match=message):
        EOTAutoAttack(Linf(0.01), **SHORT)(Linear(), x, y, **more)
