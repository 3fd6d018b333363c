import pytest
import torch
from torch import nn

from attacks import L2, AutoAttack, Linf
from attacks.losses import margin


class Linear(nn.Module):
    """Ten classes, linear; `calls` remembers the keys of every call."""

    def __init__(self, random=False):
        super().__init__()
        self.w = torch.randn(48, 10, generator=torch.Generator().manual_seed(0))
        self.keys = []

    def forward(self, x):
        return (x - 0.5).flatten(1) @ self.w


class Keyed(Linear):
    def forward(self, x, keys=None):
        self.keys.append(keys)
        return super().forward(x)


X = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
Y = Linear()(X).argmax(1)
SHORT = {"version": "custom", "attacks": ("apgd-ce", "apgd-t", "fab-t", "square"), "iterations": 10, "queries": 50}


@pytest.mark.parametrize("threat", [Linf(0.3), L2(2.0)])
def test_breaks_a_linear_model_within_the_ball(threat):
    x_adv = AutoAttack(threat, **SHORT)(Linear(), X, Y)
    assert (margin(Linear()(x_adv), Y) > 0).all()
    assert (threat.distance(x_adv, X) <= threat.epsilon * (1 + 1e-5)).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1


def test_repeats_itself_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    attack, keys = AutoAttack(Linf(0.05), **SHORT), torch.arange(8)
    assert torch.equal(attack(Linear(), X, Y, keys), attack(Linear(), X, Y, keys))
    assert torch.equal(before, torch.get_rng_state())


def test_the_ambient_generator_does_not_matter():
    attack = AutoAttack(Linf(0.01), version="custom", attacks=("apgd-ce",), iterations=2, draws="torch")
    x, y = torch.rand(60, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.zeros(60, dtype=torch.int64)
    verdicts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        verdicts.append(attack.with_verdict(Lucky(), x, y))
    assert torch.equal(verdicts[0][1], verdicts[1][1]) and torch.equal(verdicts[0][0], verdicts[1][0])


def test_an_attack_without_apgd_leaves_no_random_model_unattacked():
    class Sure(Linear):
        def forward(self, x, keys=None):
            return 100 * super().forward(x)

    x_adv = AutoAttack(Linf(1e-3), version="custom", attacks=("square",), queries=2)(Sure(), X, Y)
    assert (x_adv != X).flatten(1).any(1).all()


def test_every_call_of_a_random_model_gets_fresh_keys():
    model = Keyed()
    AutoAttack(Linf(0.02), version="custom", attacks=("apgd-ce",), iterations=3, eot=2)(model, X, Y)
    used = torch.cat(model.keys)
    assert len(model.keys) > 5
    assert len(used.unique()) == len(used) - 8 * 8  # the two points of an image are compared by the same 8 draws


def test_a_random_model_gets_no_clean_images_back():
    """A draw that is wrong on the clean image, or right on the attacked one, must not leave the image unattacked."""

    class Coin(Linear):
        def forward(self, x, keys=None):
            logits = super().forward(x)
            return torch.where((keys % 2 == 0)[:, None], logits, -logits)

    threat = Linf(0.02)
    x_adv = AutoAttack(threat, version="custom", attacks=("apgd-ce",), iterations=5)(Coin(), X, Y)
    assert (threat.distance(x_adv, X) > 0.01).all()


class Lucky(nn.Module):
    """Right (class 0) or wrong by a coin, whatever the image: its accuracy is 1/2 under any attack."""

    def __init__(self):
        super().__init__()
        self.keys = []

    def forward(self, x, keys=None):
        self.keys.append(keys)
        coin = ((keys // 7) % 2).to(x.dtype)
        return torch.stack([1 - coin, coin], 1) + 1e-3 * x.flatten(1)[:, :2]


def test_the_official_verdict_is_that_of_single_draws():
    """Right in the clean draw and in the one after each attack: 1/2 to the power of 1 + attacks, though every fresh
    draw is right with 1/2.
    """
    x, y = torch.rand(400, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.zeros(400, dtype=torch.int64)
    attack = AutoAttack(
        Linf(0.01), version="custom", attacks=("apgd-ce", "square"), iterations=2, queries=2, batch_size=400
    )
    x_adv, right = attack.with_verdict(Lucky(), x, y)
    assert right.dtype == torch.bool and right.shape == (400,)
    assert abs(right.double().mean() - 1 / 8) < 4 * (1 / 8 * 7 / 8 / 400) ** 0.5
    fresh = Lucky()(x_adv, torch.randint(2**40, (400,), generator=torch.Generator().manual_seed(2))).argmax(1) == 0
    assert abs(fresh.double().mean() - 1 / 2) < 4 * (1 / 4 / 400) ** 0.5


def test_the_official_code_seeds_every_batch_alike():
    """With noise from torch's generator the draws of the second batch are those of the first; counted draws never
    repeat.
    """
    x, y = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.zeros(8, dtype=torch.int64)

    class AlwaysRight(Lucky):
        def forward(self, x, keys=None):
            self.keys.append(keys)
            return torch.stack([1 + x[:, 0, 0, 0], x[:, 0, 0, 1] - 1], 1)

    for draws, repeats in (("torch", True), ("counted", False)):
        model = AlwaysRight()
        AutoAttack(Linf(0.01), version="custom", attacks=("apgd-ce",), iterations=2, batch_size=4, draws=draws)(
            model, x, y
        )
        used = [tuple(keys.tolist()) for keys in model.keys if len(keys) == 4]
        comparisons = 8 * 2  # the second of two points under the same 8 draws, in two batches
        assert (len(set(used)) < len(used) - comparisons) == repeats


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"version": "fast"}, "version='fast' is not one of standard, rand, custom"),
        ({"draws": "numpy"}, "draws='numpy' is not one of counted, torch"),
        ({"version": "custom"}, 'attacks go with version="custom"'),
        ({"attacks": ("square",)}, 'attacks go with version="custom"'),
        ({"version": "custom", "attacks": ("pgd",)}, "attacks: 'pgd' is not one of apgd-ce"),
        ({"version": "rand", "iterations": 5}, "fixed by version='rand'"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoAttack(Linf(0.1), **arguments)
