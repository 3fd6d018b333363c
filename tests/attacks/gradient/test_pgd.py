import warnings

import pytest
import torch
from attack_models import Linear, LinearMany, NoisyGradient, images
from torch import nn

from attacks import L2, PGD, Linf, count_cost
from attacks.losses import cross_entropy, margin

X = images()
Y = Linear()(X).argmax(1)


def test_linf_reaches_the_optimum_of_a_linear_model():
    """The worst logit difference under Linf is |w . x| - epsilon |w|_1: every pixel moves by epsilon against
    the sign.
    """
    model, x_adv = Linear(), PGD(Linf(0.03), steps=10)(Linear(), X, Y)
    optimum = margin(model(X), Y) + 0.03 * model.w.abs().sum()
    torch.testing.assert_close(margin(model(x_adv), Y), optimum.expand(6), rtol=1e-9, atol=0)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_l2_reaches_the_optimum_of_a_linear_model(loss):
    # Steps of epsilon/2 turn the random start's sideways part to the optimum; the default travels 2.5 epsilon in all,
    # which leaves 1 % of it.
    model, x_adv = Linear(), PGD(L2(0.2), steps=40, step_size=0.1, loss=loss)(Linear(), X, Y)
    optimum = margin(model(X), Y) + 0.2 * model.w.norm()
    assert ((margin(model(x_adv), Y) - margin(model(X), Y)) / (optimum - margin(model(X), Y)) > 0.999).all()


def test_linf_optimum_with_the_image_box():
    """Near the border a pixel can only move as far as the box allows."""
    x = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[x < 0.2], x[x > 0.8] = 0.0, 1.0
    model = Linear()
    y = model(x).argmax(1)
    toward = torch.where((y == 1)[:, None, None, None], -1.0, 1.0) * model.w.sign()
    best = (x + 0.1 * toward).clamp(0, 1)
    x_adv = PGD(Linf(0.1), steps=20)(model, x, y)
    torch.testing.assert_close(x_adv, best, rtol=0, atol=1e-9)


def test_more_draws_find_more_of_the_optimum():
    """With noise larger than the signal, one draw steps at random; many draws average it out."""
    optimum = 0.02 * Linear().w.abs().sum()
    reached = []
    for eot in (1, 64):
        x_adv = PGD(Linf(0.02), steps=10, eot=eot, loss="margin")(NoisyGradient(), X, Y)
        reached.append(((margin(Linear()(x_adv), Y) - margin(Linear()(X), Y)) / optimum).mean().item())
    assert reached[0] < 0.7 and reached[1] > 0.9


def test_draws_are_all_different():
    model = NoisyGradient()
    PGD(Linf(0.02), steps=3, eot=4, restarts=2)(model, X, Y, keys=torch.arange(6))
    used = torch.cat(model.seen)
    assert len(used) == 6 * 4 * (2 * 3 + 2)  # two restarts of three steps, and the draws that choose between them
    assert len(used.unique()) == len(used)
    assert not set(used.tolist()) & set(range(6))


def test_result_depends_on_keys_not_on_the_batch():
    model, keys = NoisyGradient(), torch.arange(6) + 100
    attack = PGD(Linf(0.02), steps=3, eot=2, restarts=2, batch_size=5)
    whole = attack(model, X, Y, keys=keys)
    for i in range(6):
        torch.testing.assert_close(attack(model, X[i : i + 1], Y[i : i + 1], keys=keys[i : i + 1]), whole[i : i + 1])
    assert not torch.equal(attack(model, X, Y, keys=keys + 1), whole)


def test_restarts_keep_the_best_of_each_image():
    """On a model with a bad local optimum, several random starts do at least as well on every image, and better on
    some.
    """

    class Wavy(nn.Module):
        def forward(self, x):
            z = torch.sin(40 * x).sum((1, 2, 3))
            return torch.stack([-z, z], 1)

    x = torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = Wavy()(x).argmax(1)
    one, many = (margin(Wavy()(PGD(Linf(0.2), steps=10, restarts=r, loss="margin")(Wavy(), x, y)), y) for r in (1, 8))
    assert (many >= one - 1e-9).all() and (many > one + 0.1).any()


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(1.5)])
def test_targeted(threat, loss):
    y = LinearMany(3)(X).argmax(1)
    targets = (y + 1) % 3
    assert torch.equal(LinearMany(3)(PGD(threat, loss=loss)(LinearMany(3), X, y, targets=targets)).argmax(1), targets)
    with pytest.raises(ValueError, match='loss="dlr" needs at least 4 classes when targeted, got 3'):
        PGD(threat, loss="dlr")(LinearMany(3), X, y, targets=targets)


def test_targeted_restarts_keep_the_point_nearest_to_the_target():
    y = LinearMany(3)(X).argmax(1)
    targets = (y + 1) % 3
    attack = PGD(Linf(0.02), steps=1, step_size=0.01, restarts=4)
    x_adv, one = (
        attack(LinearMany(3), X, y, targets=targets),
        PGD(Linf(0.02), steps=1, step_size=0.01)(LinearMany(3), X, y, targets=targets),
    )
    reached, of_one = (margin(LinearMany(3)(z), y, targets) for z in (x_adv, one))
    assert (reached >= of_one).all() and (reached > of_one).any()


def test_momentum_is_that_of_mi_fgsm():
    """Dong et al. 2018, algorithm 1, line by line: g = mu g + grad / mean |grad|, x = x + step sign(g)."""
    model, x_adv, velocity = LinearMany(3), X.clone(), torch.zeros_like(X)
    y = model(X).argmax(1)
    for _ in range(6):
        z = x_adv.clone().requires_grad_()
        (g,) = torch.autograd.grad(cross_entropy(model(z), y).sum(), z)
        velocity = 0.8 * velocity + g / g.abs().mean((1, 2, 3), keepdim=True)
        x_adv = (X + (x_adv + 0.005 * velocity.sign() - X).clamp(-0.02, 0.02)).clamp(0, 1)
    ours = PGD(Linf(0.02), steps=6, step_size=0.005, momentum=0.8, random_start=False)(model, X, y)
    torch.testing.assert_close(ours, x_adv, rtol=0, atol=1e-12)


def test_momentum_averages_noise_out():
    gains = []
    for momentum in (0.0, 0.9):
        x_adv = PGD(Linf(0.02), steps=40, eot=4, loss="margin", momentum=momentum)(NoisyGradient(), X, Y)
        gains.append(((margin(Linear()(x_adv), Y) - margin(Linear()(X), Y)) / (0.02 * Linear().w.abs().sum())).mean())
    assert gains[1] > gains[0] + 0.1


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
    ],
)
def test_schedules(schedule, factors):
    """On a linear model all steps point one way: the distance travelled is the sum of the steps."""
    x_adv = PGD(Linf(0.4), steps=4, step_size=0.01, schedule=schedule, random_start=False)(Linear(), X, Y)
    torch.testing.assert_close((x_adv - X).abs(), torch.full_like(X, 0.01 * sum(factors)))


def test_starts_where_it_is_told():
    seen = []

    class Watched(Linear):
        def forward(self, x):
            seen.append(x.detach().clone())
            return super().forward(x)

    start = Linf(0.05).project(X + 0.1, X)
    PGD(Linf(0.05), steps=2)(Watched(), X, Y, start=start)
    assert torch.equal(seen[0], start)
    PGD(Linf(0.05), steps=2, restarts=2)(Watched(), X, Y, start=start)
    # after a comparison, the second restart is random
    assert torch.equal(seen[2], start) and not torch.equal(seen[5], start)


def test_broken_images_leave_as_they_are():
    """Five images beyond the boundary at the start, one far from it."""
    x = X.clone()
    x[5] = 0.5 + 0.3 * Linear().w[0].sign()
    y = Linear()(x).argmax(1)
    model = NoisyGradient(scale=1e-6)
    wrong = torch.cat([1 - y[:5], y[5:]])
    with count_cost() as cost:
        x_adv = PGD(Linf(0.01), steps=10, eot=2, stop_draws=3, random_start=False)(model, x, wrong)
    assert torch.equal(x_adv[:5], x[:5]) and (Linf(1.0).distance(x_adv, x)[5] - 0.01).abs() < 1e-9
    assert cost.backward == 2 * (6 + 9) and cost.forward == cost.backward + 5 * 3


def test_a_lucky_draw_does_not_end_an_image():
    class Coin(Linear):
        def forward(self, x, keys=None):
            return super().forward(x) * torch.where(keys % 2 == 0, 1.0, -1.0)[:, None]

    with count_cost() as cost:
        PGD(Linf(0.01), steps=10, stop_draws=20)(Coin(), X, Y)
    assert cost.backward == 60


def test_broken_images_of_one_restart_are_not_attacked_again():
    with count_cost() as cost:
        x_adv = PGD(Linf(0.2), steps=10, restarts=3, stop_draws=1)(Linear(), X, Y)
    assert (margin(Linear()(x_adv), Y) > 0).all() and cost.backward < 60


def test_dead_gradients_are_reported():
    class Detached(Linear):
        def forward(self, x):
            return super().forward(x.detach()) + 0 * x.sum()

    with pytest.warns(UserWarning, match="gradient was exactly zero for 2 of 6 images, in up to 2 of 2 steps"):
        PGD(Linf(0.1), steps=2)(Detached(), X, Y)


def test_gradients_that_break_later_are_reported_too():
    class Breaking(Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * (torch.nan if self.calls > 2 else 1.0)

    with pytest.warns(UserWarning, match="gradient was NaN or infinite for 6 of 6 images, in up to 3 of 5 steps"):
        PGD(Linf(0.1), steps=5)(Breaking(), X, Y)


def test_healthy_gradients_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGD(Linf(0.1), steps=2)(Linear(), X, Y)


def test_parameters_get_no_gradient():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).double()
    PGD(Linf(0.1), steps=2)(model, X, Y)
    assert all(p.grad is None for p in model.parameters())


def test_progress_counts_gradients():
    seen = []
    PGD(Linf(0.1), steps=3, restarts=2)(Linear(), X, Y, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"eot": 0}, "eot must be a positive integer, got 0"),
        ({"loss": "cw"}, "loss='cw' is not one of ce, margin, dlr"),
        ({"step_size": 0.0}, "step_size must be positive, got 0.0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"schedule": "step"}, "schedule='step' is not one of constant, linear, cosine"),
        ({"stop_draws": -1}, "stop_draws must be an integer from 0, got -1"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        PGD(Linf(0.1), **arguments)
