import pytest
import torch
from attack_models import Linear, LinearMany, NoisyGradient, box_images, images, worst

from attacks import L2, Linf, count_cost
from attacks.losses import margin
from attacks.query.spsa import SPSA

X = images()
Y = Linear()(X).argmax(1)
OPTIMUM = {Linf(0.03): 0.03 * Linear().w.abs().sum(), L2(0.2): 0.2 * Linear().w.norm()}


def gain(x_adv, x=X, y=Y):
    return margin(Linear()(x_adv), y) - margin(Linear()(x), y)


@pytest.mark.parametrize("threat", list(OPTIMUM))
@pytest.mark.parametrize("estimator", ["spsa", "nes"])
def test_90_percent_of_a_linear_optimum_in_4000_queries(threat, estimator):
    with count_cost() as cost:
        x_adv = SPSA(threat, iterations=30, samples=66, estimator=estimator)(Linear(), X, Y)
    assert (gain(x_adv) > 0.9 * OPTIMUM[threat]).all()
    assert (cost.forward, cost.backward) == (6 * (30 * 2 * 66 + 2), 0) and cost.forward < 6 * 4000


@pytest.mark.parametrize("threat", list(OPTIMUM))
def test_90_percent_behind_noise_in_8500_queries(threat):
    with count_cost() as cost:
        x_adv = SPSA(threat, iterations=40, samples=105)(NoisyGradient(1.0), X[:2], Y[:2])
    assert (gain(x_adv, X[:2], Y[:2]) > 0.9 * OPTIMUM[threat]).all()
    assert cost.forward == 2 * (40 * 2 * 105 + 2 * 8) and cost.forward < 2 * 8500


def test_with_the_image_box():
    x = box_images()
    y = Linear()(x).argmax(1)
    best = worst(x, torch.where(y == 1, -1.0, 1.0)[:, None, None, None] * Linear().w, 0.1, "Linf")
    x_adv = SPSA(Linf(0.1), iterations=20, samples=100)(Linear(), x, y)
    assert (gain(x_adv, x, y) > 0.9 * gain(best, x, y)).all() and x_adv.min() >= 0 and x_adv.max() <= 1


def test_points_are_images_and_differences_share_their_draws():
    """Both sides of a difference see the same keys, different directions different ones, and no query leaves [0, 1]."""
    model = NoisyGradient()
    seen = []
    forward = model.forward

    def watch(x, keys):
        assert x.min() >= 0 and x.max() <= 1
        seen.append(keys)
        return forward(x, keys)

    model.forward = watch
    SPSA(Linf(0.02), iterations=2, samples=3, eot=2, delta=0.6)(model, X, Y, torch.arange(6))
    queries = torch.cat(seen[:-2])  # the last two choose
    assert len(queries) == 6 * 2 * 2 * 3 * 2
    assert (torch.unique(queries, return_counts=True)[1] == 2).all()


def test_the_gradient_estimate_is_unbiased():
    """The mean of many estimates of a linear model's gradient is that gradient."""
    from attacks.expectation import Expectation

    for estimator in ("spsa", "nes"):
        estimate = SPSA(Linf(0.1), samples=20000, estimator=estimator)._estimate(Expectation(Linear(), Y[:1], 1, 4000))
        with torch.no_grad():
            gradient = estimate(X[:1], torch.arange(1), torch.arange(1))[0]
        expected = Linear().w * (1 if Y[0] == 0 else -1)
        # The standard deviation of one coordinate is |w| / sqrt(samples) = 0.07.
        assert (gradient - expected).abs().max() < 0.35 and torch.nn.functional.cosine_similarity(
            gradient.flatten(), expected.flatten(), 0
        ) > 0.99


def test_targets_are_reached():
    model = LinearMany()
    y, targets = model(X).argmax(1), model(X).argmin(1)
    for threat in (Linf(0.1), L2(1.5)):
        assert torch.equal(
            model(SPSA(threat, iterations=10, samples=40)(model, X, y, targets=targets)).argmax(1), targets
        )


def test_result_depends_on_keys_not_on_the_batch():
    model, keys = NoisyGradient(), torch.arange(3) + 100
    attack = SPSA(Linf(0.02), iterations=3, samples=5, eot=2, restarts=2, stop_draws=3, batch_size=7)
    whole = attack(model, X[:3], Y[:3], keys)
    for i in range(3):
        torch.testing.assert_close(attack(model, X[i : i + 1], Y[i : i + 1], keys[i : i + 1]), whole[i : i + 1])
    assert not torch.equal(attack(model, X[:3], Y[:3], keys + 1), whole)


def test_broken_images_leave():
    with count_cost() as cost:
        x_adv = SPSA(Linf(0.1), iterations=50, samples=10, stop_draws=3)(Linear(), X, 1 - Y)  # already wrong
    assert torch.equal(x_adv, X)
    assert cost.forward == 6 * (2 * 10 + 1 + 3)


def test_progress_and_dead_gradients():
    class Flat(Linear):
        def forward(self, x):
            return super().forward(x).sign()

    seen = []
    with pytest.warns(UserWarning, match="gradient was exactly zero"):
        SPSA(Linf(0.001), iterations=2, samples=3, delta=1e-9, restarts=2)(
            Flat(), X, Y, progress=lambda done, total: seen.append((done, total))
        )
    assert seen == [(i, 4) for i in range(1, 5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "samples must be a positive integer, got 0"),
        ({"estimator": "rgf"}, "estimator='rgf' is not one of spsa, nes"),
        ({"delta": 0.0}, "delta must be a positive number, got 0.0"),
        ({"step_size": -1.0}, "step_size must be a positive number, got -1.0"),
        ({"loss": "cw"}, "loss='cw' is not one of ce, margin, dlr"),
        ({"threat": 0.1}, "threat must be Linf or L2, got float"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        SPSA(**{"threat": Linf(0.1)} | arguments)
