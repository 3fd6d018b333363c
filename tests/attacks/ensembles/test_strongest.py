"""The adaptive ensemble: what it spends and on whom, which example it keeps, and what stops it."""

import functools
from types import SimpleNamespace

import pytest
import torch
from attack_models import BehindNoise, Linear, LinearMany, NoisyGradient, images, worst
from torch import nn

import attacks
from attacks import L2, PGD, Linf, count_cost
from attacks.ensembles.stages import STAGES, Shape
from attacks.ensembles.strongest import Strongest
from attacks.losses import margin

strongest = functools.partial(attacks.strongest, stop_draws=8)  # budgets stay small

X, Y = images(), torch.zeros(6, dtype=torch.int64)
STRONG = Linear()(X).argmax(1)  # the labels that a linear model gives


def evaluations(cost):
    return cost.forward + 2 * cost.backward


class Robust(nn.Module):
    """A linear model whose margin no perturbation of these budgets overcomes: all images stand to the end."""

    def __init__(self, sigma=0.05):
        super().__init__()
        self.noisy = BehindNoise(Linear(), sigma)
        self.seen = self.noisy.seen

    def forward(self, x, keys=None):
        return self.noisy(x, keys=keys) + torch.tensor([100.0, 0.0], dtype=x.dtype)


@pytest.mark.parametrize(("budget", "count", "eot"), [(60, 6, None), (150, 6, None), (600, 6, None), (3000, 1, 1)])
def test_the_budget_is_spent_and_not_exceeded(budget, count, eot):
    """By no more than one gradient of one attack: 8 draws of each image, each worth 3."""
    model, spending = Robust(), []
    with count_cost() as cost:
        strongest(Linf(0.03), budget, eot=eot, report=spending.append)(model, X[:count], Y[:count])
    assert cost.forward == sum(len(keys) for keys in model.seen)
    assert evaluations(cost) <= count * (budget + 3 * 8)
    assert evaluations(cost) > 0.75 * count * budget
    # and the clean images, looked at first
    assert sum(s.evaluations for s in spending) + count * 2 * 8 == evaluations(cost)
    assert all(s.images == s.standing == count for s in spending)
    if budget == 3000:
        assert {s.name for s in spending} == set(STAGES) - {"deviated"}


class Many(nn.Module):
    """Ten classes, of which the first always wins, and states to look at."""

    def __init__(self):
        super().__init__()
        self.noisy = BehindNoise(LinearMany(10), 0.05)

    def forward(self, x, keys=None):
        return self.noisy(x, keys=keys) + torch.tensor([100.0] + [0.0] * 9, dtype=x.dtype)

    def trajectory(self, x, keys, points, estimates):
        return SimpleNamespace(
            result=self(x, keys), noised=torch.stack([x, x]), states=torch.stack([x, 0.9 * x]), estimates=None
        )


class Fixed(nn.Module):
    """`Many` without randomness."""

    def __init__(self):
        super().__init__()
        self.many = Many()

    def forward(self, x):
        return self.many(x, keys=torch.zeros(len(x), dtype=torch.int64))


@pytest.mark.parametrize("name", STAGES)
def test_what_is_planned_fits_its_allowance_and_uses_most_of_it(name):
    """Where no image falls."""
    for model, eot in ((Many(), 3), (Fixed(), 1)):
        shape = Shape(Linf(0.03), eot, eot > 1, 8, 256, targeted=False, shows_states=True)
        planned = 0
        for allowance in (30, 200, *((900,) if name in ("apgd-t", "fab-t") else ())):
            attack = STAGES[name].plan(shape, allowance)
            if attack is None or not STAGES[name].fits(shape) or (name == "deviated" and eot == 1):
                continue
            planned += 1
            with count_cost() as cost:
                attack(model, X[:1], Y[:1])
            assert evaluations(cost) <= allowance
            assert evaluations(cost) > 0.5 * allowance or allowance == 30 or name in ("pgd-short", "fab-t")
        assert planned or not STAGES[name].fits(shape) or eot == 1


def test_an_attack_that_costs_more_than_planned_is_broken_off():
    """All draws of a gradient say that the image is broken, and the fresh ones never confirm it: an attack pays for
    both at every step.
    """

    class Undecided(BehindNoise):
        def forward(self, x, keys=None):
            if x.requires_grad:
                return super().forward(x, keys) + torch.tensor([0.0, 100.0], dtype=x.dtype)
            return super().forward(x, keys).detach() + torch.tensor([100.0, 0.0], dtype=x.dtype)

    spending = []
    with count_cost() as cost:
        x_adv = strongest(Linf(0.03), 100, sequence=("pgd",), stop_draws=30, report=spending.append)(
            Undecided(Linear(), 0.05), X, Y
        )
    assert evaluations(cost) <= 6 * (100 + 3 * 8 + 30)
    assert spending[-1].improved == 0 and x_adv.shape == X.shape


def test_the_order_is_that_of_the_sequence_round_after_round():
    spending = []
    strongest(Linf(0.03), 1500, eot=2, sequence=("square", "pgd-short", "apgd-ce"), report=spending.append)(
        Robust(), X[:1], Y[:1]
    )
    places = [(s.round, ("square", "pgd-short", "apgd-ce").index(s.name)) for s in spending]
    assert places == sorted(places) and places[:3] == [(0, 0), (0, 1), (0, 2)] and places[-1][0] > 0


def test_images_that_fall_leave_their_budget_to_the_others():
    """Five images are wrong from the start: after a look at them, the sixth has all of their evaluations."""
    model, spending = Robust(), []
    y = torch.ones(6, dtype=torch.int64)
    y[2] = 0
    with count_cost() as cost:
        x_adv = strongest(Linf(0.03), 100, report=spending.append)(model, X, y)
    assert all(s.images == 1 for s in spending)
    assert 6 * 100 * 0.6 < evaluations(cost) <= 6 * 100 + 3 * 8
    others = torch.arange(6) != 2
    assert torch.equal(x_adv[others], X[others])  # the clean image is the example where it is wrong by all draws


@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.2)], ids=["Linf", "L2"])
def test_optimum_of_a_linear_model_behind_noise(threat):
    x_adv = strongest(threat, 1200)(Robust(), X, Y)
    best = worst(X, Linear().w.expand_as(X), threat.epsilon, type(threat).__name__)
    gain, most = (margin(Linear()(points), Y) - margin(Linear()(X), Y) for points in (x_adv, best))
    assert (gain / most > 0.99).all()
    assert (threat.distance(x_adv, X) <= threat.epsilon * (1 + 1e-9)).all() and x_adv.min() >= 0 and x_adv.max() <= 1


def test_the_example_kept_has_the_largest_mean_margin(monkeypatch):
    """Of planted results, in whatever order they come: the best one, NaN never, and the clean image where all are worse
    than it.
    """
    along = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], dtype=X.dtype)[:, None, None, None] * Linear().w.sign()
    planted = [X + share * 0.03 * along for share in (0.2, 0.9, 0.5)] + [torch.full_like(X, torch.nan)]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        results = iter([planted[i] for i in order])

        def plan(shape, allowance, results=results):
            return (lambda model, x, y, keys, progress: next(results)) if allowance > 100 else None

        monkeypatch.setitem(STAGES, "pgd", STAGES["pgd"]._replace(plan=plan, goes_on=False))
        x_adv = strongest(Linf(0.03), 4 * 16 + 32 + 100, sequence=("pgd",))(Robust(0.5), X, Y)
        assert torch.equal(x_adv, torch.cat([planted[1][:3], X[3:]]))
        assert next(results, None) is None


def test_it_beats_plain_steps_at_equal_cost():
    """On noisy gradients, where no image falls."""

    class Standing(NoisyGradient):
        def forward(self, x, keys=None):
            return super().forward(x, keys) + torch.tensor([100.0, 0.0], dtype=x.dtype)

    with count_cost() as cost:
        x_adv = strongest(Linf(0.02), 600)(Standing(), X, Y)
    plain = PGD(Linf(0.02), steps=round(evaluations(cost) / 6 / (3 * 8)), eot=8)(Standing(), X, Y)
    ours, theirs = (
        (margin(Linear()(points), Y) - margin(Linear()(X), Y)).mean() / (0.02 * Linear().w.abs().sum())
        for points in (x_adv, plain)
    )
    assert ours > theirs + 0.1


def test_targeted():
    w = torch.randn(5, 108, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    class Five(nn.Module):
        def forward(self, x, keys=None):
            return (x - 0.5).flatten(1) @ w.T

    y = Five()(X).argmax(1)
    targets = (y + 1) % 5
    x_adv = strongest(Linf(0.1), 300)(BehindNoise(Five(), 0.05), X, y, targets=targets)
    assert (Five()(x_adv).argmax(1) == targets).all()


def test_deterministic_models_are_not_drawn_from_again_and_again():
    """One draw a gradient, one to choose, one to stop, and no attack on draws; what is broken at once is done
    at once.
    """

    class Counting(Linear):
        calls = 0

        def forward(self, x):
            self.calls += len(x)
            return super().forward(x)

    spending, model = [], Counting()
    with count_cost() as cost:
        strongest(Linf(0.05), 500, report=spending.append)(model, X, STRONG)
    assert model.calls == cost.forward + 2 and spending[0].attack.eot == 1
    assert spending[-1].standing == 0 and evaluations(cost) < 6 * 60


def test_no_draw_is_used_twice_between_stages_nor_the_callers():
    model = Robust()
    strongest(Linf(0.03), 150, eot=2)(model, X, Y, keys=torch.arange(6))
    used = torch.cat(model.seen)
    assert not set(used.tolist()) & set(range(6))
    counts = used.unique(return_counts=True)[1]
    assert (counts == 1).sum() > 0.5 * len(counts)  # repeated are only the draws that compare points


def test_same_keys_same_result():
    attack = strongest(Linf(0.03), 150, eot=2)
    assert torch.equal(attack(Robust(), X, Y, keys=torch.arange(6)), attack(Robust(), X, Y, keys=torch.arange(6)))


def test_start_is_a_candidate():
    best = worst(X, Linear().w.expand_as(X), 0.03, "Linf")
    x_adv = strongest(Linf(0.03), 80, sequence=("square",), eot=1)(Robust(), X[:2], Y[:2], start=best[:2])
    torch.testing.assert_close(x_adv, best[:2], rtol=0, atol=1e-12)


def test_states_are_attacked_where_the_model_shows_them(gaussian_score):
    from purify import DefendedClassifier, DiffPure

    model = DefendedClassifier(DiffPure(gaussian_score(0.0, 0.5), 0.1, 2), nn.Sequential(Linear(), Shift()))
    spending = []
    strongest(Linf(0.03), 160, eot=1, sequence=("pgd", "deviated"), report=spending.append)(model, X[:2], Y[:2])
    assert [s.name for s in spending][:2] == ["pgd", "deviated"]
    closed = DefendedClassifier(DiffPure(gaussian_score(0.0, 0.5), 0.1, 2, "bpda"), model.classifier)
    strongest(Linf(0.03), 160, eot=1, sequence=("pgd", "deviated"), report=spending.append)(closed, X[:2], Y[:2])
    assert {s.name for s in spending[2:]} == {"pgd"}
    with pytest.raises(ValueError, match=r"sequence=\('deviated',\) has no attack that fits the model Robust"):
        strongest(Linf(0.03), 100, sequence=("deviated",))(Robust(), X, Y)


class Shift(nn.Module):
    def forward(self, logits):
        return logits + torch.tensor([100.0, 0.0], dtype=logits.dtype)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0}, "budget must be a positive integer, got 0"),
        ({"budget": 100, "eot": 0}, "eot must be a positive integer, got 0"),
        ({"budget": 100, "stop_draws": 0}, "stop_draws must be a positive integer, got 0"),
        ({"budget": 100, "sequence": ("pgd", "bim")}, "sequence: 'bim' is not one of pgd-short, pgd, apgd-ce"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Strongest(Linf(0.1), **arguments)


def test_bad_input():
    with pytest.raises(
        ValueError,
        match="budget=30 evaluations an image is less than 41, what the cheapest attack of the sequence needs",
    ):
        strongest(Linf(0.1), 30)(Robust(), X, Y)
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
        strongest(Linf(0.1), 100)(Robust(), X + 1, Y)
    with pytest.raises(ValueError, match="targets must differ from the labels"):
        strongest(Linf(0.1), 100)(Robust(), X, Y, targets=Y)
