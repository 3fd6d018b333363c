import pytest
import torch
from torch import nn

from attacks import PGD, Linf
from benchmarks import evaluate
from benchmarks.statistics import wilson
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


def test_nan_logits_are_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 3), torch.nan)

    with pytest.raises(ValueError, match="returns NaN for 10 of 10 images"):
        evaluate(Broken(), X, torch.zeros(10, dtype=torch.int64))


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
