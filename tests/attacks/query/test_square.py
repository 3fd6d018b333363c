import math

import pytest
import torch
from attack_models import BehindNoise, Linear, LinearMany, NoisyGradient, box_images, images, worst
from torch import nn

import benchmarks
from attacks import L2, Linf, count_cost
from attacks.losses import margin
from attacks.query.square import Square
from attacks.query.squares import _bump
from benchmarks import datasets

X = images()
Y = Linear()(X).argmax(1)


class Small(nn.Module):
    """Linear in (1, 7, 7) images."""

    w = torch.randn(1, 1, 7, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def forward(self, x):
        z = ((x - 0.5) * self.w).sum((1, 2, 3))
        return torch.stack([-z, z], 1) / 2


def gain(model, x_adv, x, y):
    return margin(model(x_adv), y) - margin(model(x), y)


def test_linf_reaches_90_percent_of_a_linear_optimum_in_1000_queries():
    model = Linear()
    with count_cost() as cost:
        x_adv = Square(Linf(0.03), queries=1000)(model, X, Y)
    assert (gain(model, x_adv, X, Y) > 0.9 * 0.03 * model.w.abs().sum()).all()
    assert (cost.forward, cost.backward) == (6 * 1000, 0)


def test_linf_with_the_image_box():
    model, x = Linear(), box_images()
    y = model(x).argmax(1)
    best = worst(x, torch.where(y == 1, -1.0, 1.0)[:, None, None, None] * model.w, 0.1, "Linf")
    x_adv = Square(Linf(0.1), queries=1000)(model, x, y)
    assert (gain(model, x_adv, x, y) > 0.9 * gain(model, best, x, y)).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1


def test_l2_reaches_90_percent_of_a_linear_optimum_in_1000_queries():
    model = Small()
    x = 0.5 + 0.05 * torch.randn(3, 1, 7, 7, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    y = model(x).argmax(1)
    with count_cost() as cost:
        x_adv = Square(L2(0.2), queries=1000)(model, x, y)
    assert (gain(model, x_adv, x, y) > 0.9 * 0.2 * model.w.norm()).all()
    assert cost.forward == 3 * 1000
    assert (L2(0.2).distance(x_adv, x) <= 0.2 * (1 + 1e-9)).all()


def test_behind_noise_it_keeps_what_it_gains():
    """Noise of three times the gradient: single comparisons go back as often as forward (they reached 0.4 at most);
    sure ones get over 0.5.
    """
    with count_cost() as cost:
        x_adv = Square(Linf(0.03), queries=4000, eot=4)(NoisyGradient(), X[:2], Y[:2])
    assert (gain(Linear(), x_adv, X[:2], Y[:2]) / (0.03 * Linear().w.abs().sum())).mean() > 0.5
    assert cost.forward <= 2 * 4000


def test_common_draws_cancel_the_defence_s_noise():
    """Noise on the input of a linear model shifts all logits of one draw alike, so differences are exact: noise of any
    size costs nothing but queries.
    """
    x_adv = Square(Linf(0.03), queries=1000)(BehindNoise(Linear(), 10.0), X[:2], Y[:2])
    assert (gain(Linear(), x_adv, X[:2], Y[:2]) > 0.6 * 0.03 * Linear().w.abs().sum()).all()


def test_labels_alone_suffice_behind_noise():
    """The share of wrong draws tells the way; only labels are read."""

    class Labels(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = BehindNoise(Linear(), 0.1)

        def forward(self, x, keys):
            return nn.functional.one_hot(self.model(x, keys).argmax(1), 2).to(x.dtype)

    model = Labels()
    x_adv = Square(Linf(0.02), queries=4000, eot=4, answers="labels")(model, X[:3], Y[:3])
    assert (gain(Linear(), x_adv, X[:3], Y[:3]) / (0.02 * Linear().w.abs().sum())).mean() > 0.2


def test_labels_of_a_fixed_model_cross_plateaus():
    """Every point near the image has the right label until a few squares add up: proposals of equal answers are taken,
    so the search moves.
    """
    x = X[:4]
    z = (x - 0.5).mul(Linear().w).sum((1, 2, 3), keepdim=True)
    # logit difference 3: 38 % of random signs' standard deviations away
    x = x - (z - 3 * torch.where(z > 0, 1, -1)) * Linear().w / Linear().w.square().sum()
    y = Linear()(x).argmax(1)
    x_adv = Square(Linf(0.3), queries=400, answers="labels")(Linear(), x, y)
    assert (Linear()(x_adv).argmax(1) != y).all()


def test_targets_are_reached():
    model, x = LinearMany(), images()
    y, targets = model(x).argmax(1), model(x).argmin(1)
    for threat in (Linf(0.1), L2(1.5)):
        assert torch.equal(model(Square(threat, queries=300)(model, x, y, targets=targets)).argmax(1), targets)


def test_results_depend_on_keys_not_on_the_batch():
    model, keys = NoisyGradient(), torch.arange(2) + 100
    for threat in (Linf(0.02), L2(0.2)):
        attack = Square(threat, queries=80, eot=2, restarts=2, stop_draws=4, batch_size=5)
        whole = attack(model, X[:2], Y[:2], keys)
        for i in range(2):
            torch.testing.assert_close(attack(model, X[i : i + 1], Y[i : i + 1], keys[i : i + 1]), whole[i : i + 1])
        assert not torch.equal(attack(model, X[:2], Y[:2], keys + 1), whole)


def test_broken_images_leave():
    """Stripes alone break these: start and confirming draws are all that is spent, and what comes back is what was
    confirmed.
    """
    with count_cost() as cost:
        x_adv = Square(Linf(0.5), queries=500, stop_draws=3)(Linear(), X, 1 - Y)  # the clean images are already wrong
    assert (Linear()(x_adv).argmax(1) == Y).all()
    assert cost.forward < 6 * 60


def test_start_is_where_the_search_begins():
    model = Linear()
    best = worst(X, torch.where(Y == 1, -1.0, 1.0)[:, None, None, None] * model.w, 0.03, "Linf")
    torch.testing.assert_close(Square(Linf(0.03), queries=10)(model, X, Y, start=best), best)


def test_nan_is_never_better():
    class Breaking(Linear):
        def forward(self, x):
            return torch.where((x[:, :1, 0, 0] > 0.51), torch.nan, super().forward(x))

    x = X.clone()
    x[:, 0, 0, 0] = 0.5
    x_adv = Square(Linf(0.03), queries=200)(Breaking(), x, Y)
    assert (x_adv[:, 0, 0, 0] <= 0.51).all() and (gain(Linear(), x_adv, x, Y) > 0).all()


def test_bumps_are_the_paper_s():
    """Two peaks of unit length and opposite sign; each a sum of growing squares, the k-th one 1 / k^2 high."""
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for rows, height, sign in ((slice(0, 2), 2, 1), (slice(2, 5), 3, -1)):
        part = torch.zeros(height, 5, dtype=torch.float64)
        for k in range(3):
            part[max(height // 2 - k, 0) : height // 2 + k + 1, max(2 - k, 0) : 3 + k] += 1 / (k + 1) ** 2
        expected[rows] = sign * part / part.norm()
    torch.testing.assert_close(_bump(5), expected)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_not_weaker_than_the_official_code(norm):
    """Images still right after the same number of queries."""
    from pyautoattack.square import SquareAttack

    data = datasets.load("fashion-mnist-embedded")
    model, x, y = benchmarks.load_classifier("fashion-mnist"), data.images[:16].float() / 255, data.labels[:16]
    threat = Linf(0.04) if norm == "Linf" else L2(0.8)
    official = SquareAttack(model, norm=norm, n_queries=100, eps=threat.epsilon, seed=0, device="cpu")
    with torch.random.fork_rng(), torch.no_grad():
        theirs = official.perturb(x, y)
        ours = Square(threat, queries=100, stop_draws=1)(model, x, y)
        # both are random: over 64 images and 6 keys they agree
        assert (model(ours).argmax(1) == y).sum() <= (model(theirs).argmax(1) == y).sum() + 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": 0}, "queries must be a positive integer, got 0"),
        ({"answers": "scores"}, "answers='scores' is not one of logits, labels"),
        ({"p": 0.0}, r"p must lie in \(0, 1\], got 0.0"),
        ({"p": math.nan}, r"p must lie in \(0, 1\], got nan"),
        ({"stop_draws": -1}, "stop_draws must be an integer from 0, got -1"),
        ({"threat": None}, "threat must be Linf or L2, got NoneType"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Square(**{"threat": Linf(0.1)} | arguments)


def test_too_few_queries():
    with pytest.raises(
        ValueError,
        match=(
            "queries must be at least 56 with eot=20 and restarts=1 on this model, got 50|queries must be at least 80"
            " with eot=20"
        ),
    ):
        Square(Linf(0.1), queries=50, eot=20)(NoisyGradient(), X, Y)
