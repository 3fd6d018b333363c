"""DiffHammer on draws that share a vulnerability and draws that conflict: what plain averages miss, with known
optima.
"""

import warnings

import pytest
import torch
from attack_models import BehindNoise, Linear, NoisyGradient, images
from torch import nn

from attacks import L2, PGD, Linf, count_cost
from attacks.expectation import Expectation
from attacks.gradient.hammer import DiffHammer, vulnerability
from attacks.losses import margin
from attacks.randomness import mix

X, Y = images(), torch.zeros(6, dtype=torch.int64)
FRESH = mix(torch.arange(6), 77)


class Dilemma(nn.Module):
    """Six draws in ten are broken by +w, and out of reach otherwise; the other four are never broken, but would have it
    the other way, and more so.
    """

    def __init__(self):
        super().__init__()
        self.w = Linear().w
        self.seen = []

    def forward(self, x, keys=None):
        self.seen.append(keys)
        along = ((x - 0.5) * self.w).sum((1, 2, 3)) / self.w.abs().sum()
        z = torch.where(keys % 10 < 6, along - 0.02, -4 * along - 20)
        return torch.stack([-z, z], 1) / 2


def broken(model, x_adv, y=Y, targets=None):
    """Per image the share of 200 draws that neither attack saw."""
    return Expectation(model, y, 200, 1000, targets).success(x_adv, FRESH)


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.6)], ids=["Linf", "L2"])
def test_shared_vulnerability_is_found_where_the_mean_gradient_leads_away(threat):
    model, x = Dilemma(), torch.full_like(X, 0.5)
    x_adv = DiffHammer(threat, iterations=10)(model, x, Y)
    share = torch.stack([(mix(FRESH, draw) % 10 < 6).double() for draw in range(200)]).mean(0)
    assert torch.equal(broken(model, x_adv), share)
    plain = PGD(threat, steps=10, eot=10, loss="margin")(model, x, Y)
    assert (broken(model, plain) == 0).all()
    best = threat.epsilon * threat.direction(model.w)
    gain = ((x_adv - x) * model.w).sum((1, 2, 3)) / (best * model.w).sum()
    assert (gain > 0.99).all()
    assert (threat.distance(x_adv, x) <= threat.epsilon * (1 + 1e-9)).all()


@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.2)], ids=["Linf", "L2"])
def test_draws_that_agree_are_attacked_as_by_plain_averages(threat):
    """Behind Gaussian noise a linear model's draws all share the gradient: the optimum is that without noise."""
    model = BehindNoise(Linear(), 0.1)
    y = Linear()(X).argmax(1)
    best = threat.epsilon * (model.model.w.abs().sum() if isinstance(threat, Linf) else model.model.w.norm())
    x_adv = DiffHammer(threat, iterations=10, eot=4)(model, X, y)
    assert ((margin(Linear()(x_adv), y) - margin(Linear()(X), y)) / best > 0.99).all()


def test_targeted():
    """Towards class 2 of three linear classes."""
    w = torch.randn(3, 108, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    class Three(nn.Module):
        def forward(self, x, keys=None):
            return (x - 0.5).flatten(1) @ w.T

    y = Three()(X).argmax(1)
    targets = (y + 1) % 3
    model = BehindNoise(Three(), 0.05)
    x_adv = DiffHammer(Linf(0.1), iterations=10, eot=4)(model, X, y, targets=targets)
    assert (broken(model, x_adv, y, targets) == 1).all()


def corners(losses, gradients, epsilon):
    """The largest sum of sigma over a fine grid of moves of 2 pixels."""
    line = torch.linspace(-epsilon, epsilon, 41, dtype=torch.float64)
    moves = torch.cartesian_prod(line, line)
    return (losses[:, None] + gradients @ moves.T).sigmoid().sum(0).max()


def test_e_step_against_brute_force():
    """Random problems of 2 pixels: never below the mean's answer or any single draw's, and close to the best move on
    average.
    """
    generator, epsilon, ratios, means = torch.Generator().manual_seed(0), 1.0, [], []
    for _ in range(40):
        losses = 3 * torch.randn(8, 1, generator=generator, dtype=torch.float64) - 3
        gradients = 4 * torch.randn(8, 1, 1, 1, 2, generator=generator, dtype=torch.float64)
        log_weights, chosen = vulnerability(losses, gradients, lambda direction: epsilon * direction.sign(), 5)
        harm = log_weights.exp().sum()

        def harm_of(direction, losses=losses, gradients=gradients):
            return (losses[:, 0] + gradients.flatten(1) @ direction.flatten().sign()).sigmoid().sum()

        singles = torch.stack([harm_of(g) for g in gradients])
        assert harm >= singles.max() - 1e-12 and harm >= harm_of(gradients.mean(0)) - 1e-12
        assert chosen == singles.argmax()
        ratios.append(float(harm / corners(losses[:, 0], gradients.flatten(1), epsilon)))
        means.append(float(harm_of(gradients.mean(0)) / harm))
    assert min(ratios) > 0.7 and sum(ratios) / len(ratios) > 0.95
    assert min(means) < 0.7  # where the draws conflict, the mean's answer is far from it


def test_weights_do_not_underflow_far_from_the_boundary():
    """All draws hopeless: the least hopeless, which is far ahead of the others, has all the weight."""
    losses = torch.tensor([[-500.0], [-1000.0]])
    log_weights, _ = vulnerability(losses, torch.zeros(2, 1, 1, 1, 2), lambda direction: direction, 2)
    assert torch.equal(log_weights.softmax(0), torch.tensor([[1.0], [0.0]]))


class Stages(nn.Module):
    """A purifier that adds noise of the key, and a linear classifier: every draw's Jacobian of the purifier is the
    identity.
    """

    def __init__(self):
        super().__init__()
        self.noisy = BehindNoise(nn.Identity(), 0.3)
        self.purifier = lambda x, keys: self.noisy(x, keys=keys)
        self.classifier = Linear()

    def forward(self, x, keys=None):
        return self.classifier(self.purifier(x, keys))


def test_grafted_equals_full_where_the_draws_have_one_jacobian():
    y = Linear()(X).argmax(1)
    settings = {"threat": L2(0.3), "iterations": 6, "eot": 5}
    with count_cost() as full_cost:
        full = DiffHammer(**settings)(Stages(), X, y)
    with count_cost() as cost:
        grafted = DiffHammer(**settings, gradients="grafted")(Stages(), X, y)
    torch.testing.assert_close(grafted, full, rtol=1e-6, atol=1e-9)
    assert cost.backward == 6 * len(X) and full_cost.backward == 6 * 5 * len(X)
    assert cost.forward - full_cost.forward == 6 * len(X)


def test_cost_is_the_calls_made():
    model = NoisyGradient()
    with count_cost() as cost:
        DiffHammer(Linf(0.02), iterations=4, eot=3, restarts=2)(model, X, Y)
    assert cost.forward == sum(len(keys) for keys in model.seen)
    assert cost.backward == 2 * 4 * 3 * len(X)


def test_draws_are_all_different_between_gradients_and_none_is_the_callers():
    model = NoisyGradient()
    DiffHammer(Linf(0.02), iterations=1, eot=4)(model, X, Y, keys=torch.arange(6))
    steps = model.seen[0]
    assert len(steps.unique()) == 4 * 6
    assert not set(torch.cat(model.seen).tolist()) & set(range(6))
    assert not set(steps.tolist()) & set(torch.cat(model.seen[1:]).tolist())


def test_result_depends_on_keys_not_on_the_batch():
    keys = torch.arange(6) + 100
    attack = DiffHammer(Linf(0.02), iterations=4, eot=3, restarts=2, batch_size=5)
    whole = attack(NoisyGradient(), X, Y, keys=keys)
    for i in range(0, 6, 2):
        torch.testing.assert_close(
            attack(NoisyGradient(), X[i : i + 1], Y[i : i + 1], keys=keys[i : i + 1]), whole[i : i + 1]
        )
    assert not torch.equal(attack(NoisyGradient(), X, Y, keys=keys + 1), whole)
    assert whole.requires_grad is False and whole.min() >= 0 and whole.max() <= 1


def test_images_that_are_surely_broken_leave():
    model = BehindNoise(Linear(), 1e-4)
    y = 1 - Linear()(X).argmax(1)  # wrong from the start
    with count_cost() as cost:
        DiffHammer(Linf(0.001), iterations=50, eot=2, stop_draws=4)(model, X, y)
    assert cost.backward == 2 * 6 and cost.forward == (2 + 4) * 6


def test_progress_counts_gradients():
    seen = []
    DiffHammer(Linf(0.1), iterations=3, eot=2, restarts=2)(NoisyGradient(), X, Y, progress=lambda *at: seen.append(at))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_nan_gradients_warn_and_never_win():
    class Breaking(NoisyGradient):
        def forward(self, x, keys=None):
            return super().forward(x, keys) * torch.where(keys % 2 == 0, torch.nan, 1.0)[:, None]

    with pytest.warns(UserWarning, match="NaN or infinite"):
        x_adv = DiffHammer(Linf(0.02), iterations=3, eot=4)(Breaking(), X, Y)
    assert x_adv.isfinite().all()


def test_healthy_models_warn_of_nothing_and_stay_as_they_are():
    model = BehindNoise(nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).double(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DiffHammer(Linf(0.1), iterations=2, eot=2)(model, X, Y)
    assert all(p.grad is None for p in model.parameters())


def test_float32():
    x_adv = DiffHammer(Linf(0.03), iterations=4, eot=2)(BehindNoise(Linear(), 0.1), X.float(), Y)
    assert x_adv.dtype == torch.float32 and (Linf(0.03).distance(x_adv, X.float()) < 0.03001).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iterations": 0}, "iterations must be a positive integer, got 0"),
        ({"eot": 1.5}, "eot must be a positive integer, got 1.5"),
        ({"gradients": "bpda"}, "gradients='bpda' is not one of full, grafted"),
        ({"loss": "cw"}, "loss='cw' is not one of ce, margin, dlr"),
        ({"sharpness": 0.0}, "sharpness must be a positive number, got 0.0"),
        ({"stepwise": 1.5}, r"stepwise must lie in \[0, 1\], got 1.5"),
        ({"stop_draws": -1}, "stop_draws must be an integer from 0, got -1"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiffHammer(Linf(0.1), **arguments)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
        DiffHammer(Linf(0.1))(Linear(), X + 1, Y)
    with pytest.raises(ValueError, match="targets must differ from the labels"):
        DiffHammer(Linf(0.1))(Linear(), X, Y, targets=Y)
    with pytest.raises(
        ValueError,
        match=(
            'DiffHammer with gradients="grafted" looks inside the model, but Linear has no purifier and no classifier'
        ),
    ):
        DiffHammer(Linf(0.1), gradients="grafted")(Linear(), X, Y)
    with pytest.raises(ValueError, match="labels and targets go up to 7"):
        DiffHammer(Linf(0.1), iterations=1, eot=2, gradients="grafted")(Stages(), X, Y + 7)
