import warnings

import pytest
import torch
from torch import nn

from attacks import L2, PGD, Linf, count_cost
from attacks.expectation import Expectation
from attacks.losses import cross_entropy, margin
from attacks.randomness import mix


class Linear(nn.Module):
    """Two classes, logit difference w . x + b: the optimal perturbation is known."""

    def __init__(self, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = scale * torch.randn(1, 3, 6, 6, generator=generator, dtype=torch.float64)

    def forward(self, x):
        z = ((x - 0.5) * self.w).sum((1, 2, 3))
        return torch.stack([-z, z], 1) / 2


class Noisy(nn.Module):
    """Linear, plus noise on the input that is a function of the keys: the mean gradient is the linear one."""

    def __init__(self, scale=3.0):
        super().__init__()
        self.linear = Linear()
        self.scale = scale
        self.seen = []

    def forward(self, x, keys=None):
        self.seen.append(keys)
        noise = torch.stack(
            [
                torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(int(k) % 2**63), dtype=x.dtype)
                for k in keys
            ]
        )
        return self.linear(x) + self.scale * torch.einsum("bchw,bchw->b", x, noise)[:, None] * torch.tensor(
            [-0.5, 0.5], dtype=x.dtype
        )


X = 0.5 + 0.05 * torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
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


def test_eot_gradient_is_the_mean_over_draws():
    """Against a plain loop over the same keys, whatever the size of the calls."""
    model, keys = Noisy(), torch.arange(6)
    expected = torch.zeros_like(X)
    for draw in range(5):
        x = X.clone().requires_grad_()
        expected += torch.autograd.grad(cross_entropy(model(x, keys=mix(keys, draw)), Y).sum(), x)[0] / 5
    for batch_size in (1, 4, 1000):
        gradient, mean, _ = Expectation(model, Y, 5, batch_size).gradient(X, keys, cross_entropy)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
        assert mean.shape == (6,)


def test_more_draws_find_more_of_the_optimum():
    """With noise larger than the signal, one draw steps at random; many draws average it out."""
    optimum = 0.02 * Linear().w.abs().sum()
    reached = []
    for eot in (1, 64):
        x_adv = PGD(Linf(0.02), steps=10, eot=eot, loss="margin")(Noisy(), X, Y)
        reached.append(((margin(Linear()(x_adv), Y) - margin(Linear()(X), Y)) / optimum).mean().item())
    assert reached[0] < 0.7 and reached[1] > 0.9


def test_draws_are_all_different():
    model = Noisy()
    PGD(Linf(0.02), steps=3, eot=4, restarts=2)(model, X, Y, keys=torch.arange(6))
    used = torch.cat(model.seen)
    assert len(used) == 6 * 4 * (2 * 3 + 2)  # two restarts of three steps, and the draws that choose between them
    assert len(used.unique()) == len(used)
    assert not set(used.tolist()) & set(range(6))


def test_result_depends_on_keys_not_on_the_batch():
    model, keys = Noisy(), torch.arange(6) + 100
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


class Three(nn.Module):
    """Three classes, linear."""

    def __init__(self):
        super().__init__()
        self.w = torch.randn(108, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def forward(self, x):
        return (x - 0.5).flatten(1) @ self.w


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(1.5)])
def test_targeted(threat, loss):
    y = Three()(X).argmax(1)
    targets = (y + 1) % 3
    assert torch.equal(Three()(PGD(threat, loss=loss)(Three(), X, y, targets=targets)).argmax(1), targets)
    with pytest.raises(ValueError, match='loss="dlr" needs at least 4 classes when targeted, got 3'):
        PGD(threat, loss="dlr")(Three(), X, y, targets=targets)


def test_targeted_restarts_keep_the_point_nearest_to_the_target():
    y = Three()(X).argmax(1)
    targets = (y + 1) % 3
    attack = PGD(Linf(0.02), steps=1, step_size=0.01, restarts=4)
    x_adv, one = (
        attack(Three(), X, y, targets=targets),
        PGD(Linf(0.02), steps=1, step_size=0.01)(Three(), X, y, targets=targets),
    )
    reached, of_one = (margin(Three()(z), y, targets) for z in (x_adv, one))
    assert (reached >= of_one).all() and (reached > of_one).any()


def test_momentum_is_that_of_mi_fgsm():
    """Dong et al. 2018, algorithm 1, line by line: g = mu g + grad / mean |grad|, x = x + step sign(g)."""
    model, x_adv, velocity = Three(), X.clone(), torch.zeros_like(X)
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
        x_adv = PGD(Linf(0.02), steps=40, eot=4, loss="margin", momentum=momentum)(Noisy(), X, Y)
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
    model = Noisy(scale=1e-6)
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


@pytest.mark.parametrize("draws", range(1, 41))
def test_a_share_of_all_draws_is_one(draws):
    """Whatever the size of the calls: sums of 1 / draws would round to less or more."""
    for batch_size in (1, 3, 100):
        expectation = Expectation(Linear(), 1 - Y[:1], draws, batch_size)
        x, keys = X[:1].float(), torch.arange(1)
        assert float(expectation.gradient(x, keys, margin)[2]) == float(expectation.success(x, keys)) == 1


class Small(Noisy):
    """Runs out of memory above so many rows."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows
        self.sizes = []

    def forward(self, x, keys=None):
        self.sizes.append(len(x))
        if len(x) > self.rows:
            raise torch.OutOfMemoryError(f"{len(x)} rows do not fit")
        return super().forward(x, keys)


@pytest.mark.parametrize("rows", [1, 2, 5, 13])
def test_calls_that_run_out_of_memory_are_halved(rows):
    attack, keys = PGD(Linf(0.02), steps=3, eot=7, restarts=2), torch.arange(6)
    model = Small(rows)
    with count_cost() as cost:
        x_adv = attack(model, X, Y, keys)
    torch.testing.assert_close(x_adv, attack(Noisy(), X, Y, keys))
    failed = [size for size in model.sizes if size > rows]
    assert failed == sorted(failed, reverse=True) and failed[0] == 42
    # and never tried again
    assert len(failed) <= 6 and all(size <= rows for size in model.sizes[model.sizes.index(failed[-1]) + 1 :])
    assert cost.forward == sum(size for size in model.sizes if size <= rows) == 6 * 7 * (2 * 3 + 2)
    assert cost.backward == 6 * 7 * 2 * 3


def test_memory_found_too_small_is_remembered_for_the_model():
    model = Small(5)
    for _ in range(2):
        PGD(Linf(0.02), steps=1, eot=7)(model, X, Y)
    tries = [size for size in model.sizes if size > 5]
    assert len(tries) == len(set(tries)) and Small(5).sizes == []


def test_one_row_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError, match="1 rows do not fit"):
        PGD(Linf(0.02), steps=1)(Small(0), X, Y)


def test_other_errors_of_the_model_pass():
    class Wrong(Linear):
        def forward(self, x):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        PGD(Linf(0.02), steps=1)(Wrong(), X, Y)


def test_counts_of_cost_nest():
    attack = PGD(Linf(0.02), steps=3, eot=2)
    with count_cost() as whole:
        attack(Noisy(), X, Y)
        with count_cost() as part:
            attack(Noisy(), X[:1], Y[:1])
    attack(Noisy(), X, Y)
    assert (part.forward, part.backward) == (6, 6) and (whole.forward, whole.backward) == (42, 42)


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


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X + 1, Y, r"x must lie in \[0, 1\], got values in"),
        (X - 1, Y, r"x must lie in \[0, 1\], got values in"),
        (X.where(X > X.amin(), torch.nan), Y, "x holds NaN or infinity in 1 of 6 images"),
        (X[0], Y, r"shape \(b, c, h, w\), got torch.float64 of shape \(3, 6, 6\)"),
        (X[:0], Y[:0], "x holds no images"),
        (X, Y[:2], r"y must be int64 labels of shape \(6,\), got torch.int64 of shape \(2,\)"),
        (X, Y.float(), "y must be int64 labels"),
        (X, Y - 2, "y must hold class indices from 0"),
    ],
)
def test_bad_inputs(x, y, message):
    with pytest.raises(ValueError, match=message):
        PGD(Linf(0.1))(Linear(), x, y)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"targets": Y}, "targets must differ from the labels y, 6 of 6 are equal"),
        ({"targets": Y + 2}, "the model has 2 classes, labels and targets go up to 3"),
        ({"targets": Y - 2}, "targets must hold class indices from 0, got -2"),
        ({"targets": Y[:2]}, r"targets must be int64 classes of shape \(6,\)"),
        ({"start": X[:2]}, "start must be images like x"),
        ({"start": X.float()}, "start must be images like x"),
        ({"start": X + 1}, r"start must lie in \[0, 1\]"),
        ({"start": (X + 0.2).clamp(max=1)}, "start must lie within epsilon=0.1 of x, 6 of 6 images do not"),
    ],
)
def test_bad_targets_and_starts(more, message):
    with pytest.raises(ValueError, match=message):
        PGD(Linf(0.1))(Linear(), X, Y, **more)
