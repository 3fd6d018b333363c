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


def test_every_call_of_a_random_model_gets_fresh_keys():
    model = Keyed()
    AutoAttack(Linf(0.02), version="custom", attacks=("apgd-ce",), iterations=3, eot=2)(model, X, Y)
    used = torch.cat(model.keys)
    assert len(model.keys) > 5
    assert len(used.unique()) == len(used)


def test_a_random_model_gets_no_clean_images_back():
    """A draw that is wrong on the clean image, or right on the attacked one, must not leave the image unattacked."""

    class Coin(Linear):
        def forward(self, x, keys=None):
            logits = super().forward(x)
            return torch.where((keys % 2 == 0)[:, None], logits, -logits)

    threat = Linf(0.02)
    x_adv = AutoAttack(threat, version="custom", attacks=("apgd-ce",), iterations=5)(Coin(), X, Y)
    assert (threat.distance(x_adv, X) > 0.01).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"version": "fast"}, "version='fast' is not one of standard, rand, custom"),
        ({"version": "custom"}, 'attacks go with version="custom"'),
        ({"attacks": ("square",)}, 'attacks go with version="custom"'),
        ({"version": "custom", "attacks": ("pgd",)}, "attacks: 'pgd' is not one of apgd-ce"),
        ({"version": "rand", "iterations": 5}, "fixed by version='rand'"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoAttack(Linf(0.1), **arguments)
