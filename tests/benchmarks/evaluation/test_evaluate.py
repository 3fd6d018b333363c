import pytest
import torch
from torch import nn

from attacks import PGD, Cost, Linf
from benchmarks.evaluation import evaluate
from benchmarks.evaluation.evaluate import UNDEFINED
from benchmarks.evaluation.statistics import wilson
from benchmarks.evaluation.targets import choose_targets
from purify import DefendedClassifier, DiffPure, noise_keys

X = torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))


class Scripted(nn.Module):
    """Right or wrong per image as a function of the keys, in a way that can be written down: class 1 for odd keys."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, keys=None):
        self.calls.append(keys)
        return nn.functional.one_hot(keys % 2, 3).float()


@pytest.fixture
def defended(unet_score):
    torch.manual_seed(0)
    return DefendedClassifier(DiffPure(unet_score, 0.2, 3), nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))


def test_numbers_follow_from_the_predictions():
    y = torch.tensor([0, 1] * 5)
    result = evaluate(Scripted(), X, y, draws=6, seed=4, batch_size=3)
    expected = torch.stack([noise_keys(4, torch.arange(10), d) % 2 for d in range(6)], 1)
    assert torch.equal(result.predictions, expected)
    right = expected == y[:, None]
    assert result.single.value == pytest.approx(right.double().mean().item())
    assert result.worst_of[6] == wilson(int(right.all(1).sum()), 10)
    votes = right.sum(1)
    assert result.majority[6] == wilson(int((votes > 3).sum()), 10)  # three against three is a tie, hence wrong


def test_attack_and_evaluation_never_share_a_draw():
    model = Scripted()

    def attack(model, x, y, keys=None, progress=None):
        model(x, keys=keys)
        return x

    evaluate(model, X, torch.zeros(10, dtype=torch.int64), attack, draws=5)
    used = torch.cat(model.calls)
    assert len(used.unique()) == len(used) == 60


def test_no_image_is_dropped_and_batches_do_not_matter(defended):
    y = torch.arange(10) % 10
    attack = PGD(Linf(0.1), steps=2, eot=2)
    whole = evaluate(defended, X, y, attack, draws=3, batch_size=10)
    parts = evaluate(defended, X, y, attack, draws=3, batch_size=4)
    assert len(whole.predictions) == len(parts.predictions) == 10
    torch.testing.assert_close(parts.x_adv, whole.x_adv, rtol=0, atol=1e-5)
    assert torch.equal(parts.predictions, whole.predictions)
    order = torch.tensor([7, 2, 9])
    some = evaluate(defended, X[order], y[order], attack, draws=3, image_ids=order)
    assert torch.equal(some.predictions, whole.predictions[order])


class Swinging(nn.Module):
    """Right by 0.05 plus or minus the sum of the perturbation, the sign by the key: whoever knows the key can always
    break it.
    """

    def forward(self, x, keys=None):
        sign = 1.0 - 2.0 * ((keys // 5) % 2)
        z = 0.05 + sign * (x - X[:, :, :2, :2].mean()).sum((1, 2, 3))
        return torch.stack([z, -z], 1)


def test_fixed_randomness_is_a_deterministic_white_box():
    """Where the attack must guess the noise it breaks half of the draws, where it knows it all of them."""
    x, y = X[:, :, :2, :2].mean().expand(10, 1, 2, 2), torch.zeros(10, dtype=torch.int64)
    attack = PGD(Linf(0.1), steps=8, loss="margin", random_start=False)
    fresh = evaluate(Swinging(), x, y, PGD(Linf(0.1), steps=8, eot=1, loss="margin"), draws=64)
    fixed = evaluate(Swinging(), x, y, attack, draws=16, randomness="fixed")
    assert fresh.single.value == pytest.approx(0.5, abs=0.1)
    assert fixed.single.value == 0
    assert evaluate(Swinging(), x, y, draws=16, randomness="fixed").single.value == 1


def test_fixed_randomness_of_a_defence(defended):
    """Every draw is judged under the noise that was attacked, another for each draw, the same in any batch."""
    seen = {}

    def attack(model, x, y, keys=None, progress=None):
        seen.setdefault(model.key, []).append(model(x))
        progress(1, 2)
        return x

    done = []
    y = torch.zeros(10, dtype=torch.int64)
    result = evaluate(
        defended, X, y, attack, draws=3, randomness="fixed", batch_size=4, progress=lambda *part: done.append(part)
    )
    assert len(seen) == 3
    expected = torch.stack([torch.cat(parts).argmax(1) for parts in seen.values()], 1)
    assert torch.equal(result.predictions, expected)
    assert result.majority == {} and result.worst_of[3] == wilson(int(result.right.all(1).sum()), 10)
    assert done == sorted(done) and done[-1] == (10, 10)
    with pytest.raises(
        ValueError, match='randomness="fixed" needs model to take `keys` in its forward; that of Sequential'
    ):
        evaluate(defended.classifier, X, y, randomness="fixed")
    with pytest.raises(
        ValueError, match='randomness="fixed" needs attack_model to take `keys` in its forward; that of Sequential'
    ):
        evaluate(defended, X, y, attack, randomness="fixed", attack_model=nn.Sequential(defended))
    with pytest.raises(ValueError, match="randomness='none' is not one of fresh, fixed"):
        evaluate(defended, X, y, randomness="none")


def test_an_attacks_own_verdict_is_kept_beside_ours():
    class Judging:
        def with_verdict(self, model, x, y, keys=None, progress=None):
            return x, torch.arange(len(x)) % 4 == 0

    y = torch.zeros(10, dtype=torch.int64)
    result = evaluate(Scripted(), X, y, Judging(), draws=2, batch_size=5)
    assert result.own.value == 4 / 10
    assert result.single.value == evaluate(Scripted(), X, y, draws=2).single.value
    assert evaluate(Scripted(), X, y, draws=2).own is None
    assert evaluate(Scripted(), X, y, Judging(), draws=3, randomness="fixed").own_verdict.shape == (10, 3)


@pytest.mark.parametrize("attacked", [False, True])
def test_verdicts_do_not_depend_on_batches_or_order(defended, attacked):
    """Noise and verdicts equal, in batches of 1, 7 and 64, forwards and backwards."""
    x, y = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(3)), torch.arange(64) % 10
    attack = PGD(Linf(0.05), steps=1) if attacked else None
    whole = evaluate(defended, x, y, attack, draws=2, batch_size=64)
    for order, size in ((torch.arange(64), 1), (torch.arange(64), 7), (torch.arange(64).flip(0), 64)):
        other = evaluate(defended, x[order], y[order], attack, draws=2, batch_size=size, image_ids=order)
        assert torch.equal(other.predictions, whole.predictions[order])
        torch.testing.assert_close(other.x_adv, whole.x_adv[order], rtol=0, atol=1e-5)


def test_network_evaluations_are_counted(defended):
    """Clean: images x draws x steps. PGD with exact gradients: every step forward and once more backward."""
    y = torch.zeros(10, dtype=torch.int64)
    assert evaluate(defended, X, y, draws=4).network_evaluations == 10 * 4 * 3
    attacked = evaluate(defended, X, y, PGD(Linf(0.1), steps=5, eot=2), draws=4)
    assert attacked.network_evaluations == 10 * 4 * 3 + 10 * 5 * 2 * 3 * 2
    assert evaluate(defended.classifier, X, y).network_evaluations == 0


def test_the_deployed_model_judges_what_another_model_attacked(defended):
    seen = []

    def attack(model, x, y, keys=None, progress=None):
        seen.append(model)
        return x

    surrogate = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    result = evaluate(defended, X, torch.zeros(10, dtype=torch.int64), attack, attack_model=surrogate)
    assert seen == [surrogate]
    assert torch.equal(result.predictions, evaluate(defended, X, torch.zeros(10, dtype=torch.int64)).predictions)


def test_verdicts_are_made_in_full_precision(defended):
    y = torch.zeros(10, dtype=torch.int64)
    expected = evaluate(defended, X, y, PGD(Linf(0.1), steps=2), draws=2)
    with torch.autocast("cpu", torch.bfloat16):
        result = evaluate(defended, X, y, PGD(Linf(0.1), steps=2), draws=2)
    assert torch.equal(result.x_adv, expected.x_adv) and torch.equal(result.predictions, expected.predictions)


def test_warnings_are_kept_with_the_result():
    class Dead(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 3) + 0 * x.sum((1, 2, 3))[:, None]

    with pytest.warns(UserWarning, match="exactly zero for 4 of 4"):
        result = evaluate(Dead(), X[:4], torch.zeros(4, dtype=torch.int64), PGD(Linf(0.1), steps=2))
    assert len(result.warnings) == 1 and "exactly zero for 4 of 4" in result.warnings[0]


class Holes(nn.Module):
    """Class 1 by a clear margin, but NaN in places: image 0 always and everywhere, image 1 in class 1, image 2 in class
    0, image 3 everywhere for odd keys.
    """

    def forward(self, x, keys=None):
        logits = torch.tensor([0.0, 5.0, -1.0]).repeat(len(x), 1)
        image = (x[:, 0, 0, 0] * 10).round().long()
        logits[image == 0] = torch.nan
        logits[image == 1, 1] = torch.nan
        logits[image == 2, 0] = torch.nan
        logits[(image == 3) & (keys % 2 == 1)] = torch.nan
        return logits


def test_nan_logits_are_reported_and_are_no_success():
    """Judged by the logits that are left; where none is finite the prediction is undefined: not right, and counted
    apart.
    """
    x = (torch.arange(10) / 10)[:, None, None, None].expand(10, 1, 2, 2)
    y = torch.ones(10, dtype=torch.int64)
    with pytest.warns(UserWarning, match="returns NaN for 4 of 10 images, in") as caught:
        result = evaluate(Holes(), x, y, draws=16, batch_size=10)
    odd = int(sum(noise_keys(0, torch.tensor([3]), draw) % 2 for draw in range(16)))
    assert 0 < odd < 16 and result.undefined == 16 + odd
    assert (
        (result.predictions[0] == UNDEFINED).all()
        and (result.predictions[1] == 0).all()
        and (result.predictions[2] == 1).all()
    )
    assert int((result.predictions[3] == UNDEFINED).sum()) == odd
    assert result.single.value == pytest.approx((7 + (16 - odd) / 16) / 10)
    assert result.majority[16].value == pytest.approx((7 + (odd < 8)) / 10)
    assert f"in {48 + odd} of 160 draws" in str(
        caught[0].message
    ) and f"{16 + odd} draws without a finite one are undefined" in str(caught[0].message)
    assert result.warnings == (str(caught[0].message),)
    with pytest.warns(UserWarning, match="returns NaN"):  # an attack that never left the image is no success either
        attacked = evaluate(Holes(), x, y, lambda model, x, y, keys=None, progress=None: x, draws=16, batch_size=3)
    assert attacked.undefined == result.undefined and torch.equal(attacked.predictions, result.predictions)


def test_no_finite_logit_in_any_draw():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 3), torch.nan)

    with pytest.warns(UserWarning, match="returns NaN for 10 of 10 images, in 20 of 20 draws"):
        result = evaluate(Broken(), X, torch.zeros(10, dtype=torch.int64), draws=2)
    assert result.undefined == 20 and result.single.value == result.majority[2].value == result.worst_of[2].value == 0


def test_the_attacks_evaluations_are_counted_and_the_judges_are_not(defended):
    y = torch.zeros(10, dtype=torch.int64)
    assert evaluate(defended, X, y, draws=4).attack_cost == Cost(0, 0)
    attack = PGD(Linf(0.1), steps=5, eot=2)
    assert evaluate(defended, X, y, attack, draws=4, batch_size=3).attack_cost == Cost(100, 100)
    assert evaluate(defended, X, y, attack, draws=4, attack_model=defended.classifier).attack_cost == Cost(100, 100)
    assert evaluate(defended, X, y, PGD(Linf(0.1), steps=5), draws=3, randomness="fixed").attack_cost == Cost(150, 150)
    restarts = PGD(Linf(0.1), steps=2, eot=2, restarts=3)  # chosen among by a mean over draws: forward only
    assert evaluate(defended, X, y, restarts, draws=1).attack_cost == Cost(10 * 3 * (2 * 2 + 2), 10 * 3 * 2 * 2)


class Slope(nn.Module):
    """Class k has the logit k times the mean pixel: class 3 wins, class 0 is the least likely."""

    def forward(self, x):
        return x.mean((1, 2, 3))[:, None] * torch.arange(4.0)


def test_targets():
    """The class asked for, never the label; what it reaches is reported beside the accuracy."""
    y, keys = torch.tensor([3, 0, 1, 2] * 50), torch.arange(200)
    x = X[:1].expand(200, -1, -1, -1)
    assert torch.equal(choose_targets("least_likely", Slope(), x, y, keys), torch.where(y == 0, 1, 0))
    assert torch.equal(choose_targets(3, Slope(), x, y, keys), torch.where(y == 3, 0, 3))
    chance = choose_targets("random", Slope(), x, y, keys)
    assert (chance != y).all() and torch.equal(
        choose_targets("random", Slope(), x[7:9], y[7:9], keys[7:9]), chance[7:9]
    )
    for label in range(4):
        assert len(chance[y == label].unique()) == 3
    with pytest.raises(ValueError, match="target=4: the model has the classes 0 .. 3"):
        choose_targets(4, Slope(), x, y, keys)
    with pytest.raises(ValueError, match="target must be least_likely, random or a class from 0, got 'likely'"):
        choose_targets("likely", Slope(), x, y, keys)

    def attack(model, x, y, keys=None, progress=None, targets=None):
        return x.where((targets != 3)[:, None, None, None], 1.0)  # class 3 is reached, the others are not tried

    result = evaluate(Slope(), x[:8], y[:8], attack, draws=2, target=3, batch_size=3)
    assert torch.equal(result.targets, torch.tensor([0, 3, 3, 3] * 2)[:, None].expand(8, 2))
    assert result.reached.value == 0.75 and result.single.value == 0.25
    assert evaluate(Slope(), x[:8], y[:8], draws=2).reached is None


def test_bad_input_comes_before_any_work(defended):
    calls = []
    defended.register_forward_hook(lambda *_: calls.append(1))
    y = torch.zeros(10, dtype=torch.int64)
    for x, labels, arguments, message in (
        (X * 2, y, {}, r"x must lie in \[0, 1\]"),
        (X.where(X < 0.99, torch.nan), y, {}, "NaN"),
        (X, y[:3], {}, "y must be int64 labels of shape"),
        (X, y, {"draws": 0}, "draws and batch_size must be positive"),
        (X, y, {"image_ids": torch.arange(3)}, "image_ids must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(defended, x, labels, **arguments)
    assert not calls


def test_keys_that_do_not_arrive_are_reported(defended):
    with pytest.warns(UserWarning, match="Sequential.forward has no parameter `keys`"):
        evaluate(nn.Sequential(defended), X, torch.zeros(10, dtype=torch.int64), draws=1)


def test_training_mode_is_reported():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(784, 10))
    with pytest.warns(UserWarning, match="1 batch-norm or dropout layers are in training mode"):
        evaluate(model, X, torch.zeros(10, dtype=torch.int64), draws=1)
