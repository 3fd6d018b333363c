"""`attacks` and `purify`, of which neither knows the other, agree on which models take keys."""

import functools

import pytest
import torch
from torch import nn

from attacks.expectation import call
from attacks.expectation import takes_keys as of_attacks
from purify.defences.keyed import takes_keys as of_purify


class Keyed(nn.Module):
    def forward(self, x, keys: torch.Tensor):
        return x + keys.to(x.dtype)


class Optional(nn.Module):
    @torch.no_grad()
    def forward(self, x, keys=None):
        return x


class Plain(nn.Module):
    def forward(self, x):
        return x


class Anything(nn.Module):
    def forward(self, x, **options):
        return x


class Wrapped(nn.Module):
    """A module whose `forward` was replaced by a function of the instance."""

    def __init__(self):
        super().__init__()
        self.forward = functools.partial(Keyed().forward)


class NoModule:
    def __call__(self, x, keys):
        return x


def keyed(x, keys=None):
    return x


def in_place(module):
    module.compile()
    return module


MODELS = {
    "a module with keys": (Keyed(), True),
    "keys with a default, behind a decorator": (Optional(), True),
    "a module without": (Plain(), False),
    "any keywords": (Anything(), False),
    "a module that hides them": (nn.Sequential(Keyed()), False),
    "a forward of the instance": (Wrapped(), True),
    "a function": (keyed, True),
    "a function without": (lambda x: x, False),
    "a bound forward": (Keyed().forward, True),
    "a partial function": (functools.partial(keyed), True),
    "a partial module, whose call takes anything": (functools.partial(Keyed()), False),
    "an object that can be called": (NoModule(), True),
    "a built-in function": (torch.relu, False),
    "a built-in without a signature": (print, False),
    "scripted": (torch.jit.script(Keyed()), True),
    "traced, without a signature": (torch.jit.trace(Plain(), torch.zeros(1)), False),
    "compiled, whose call takes anything": (torch.compile(Keyed()), False),
    "compiled without": (torch.compile(Plain()), False),
    "compiled in place": (in_place(Keyed()), True),
    "a compiled function": (torch.compile(keyed), True),
    "on several devices, whose forward takes anything": (nn.DataParallel(Keyed()), False),
}


@pytest.mark.parametrize(("model", "expected"), MODELS.values(), ids=MODELS)
def test_both_give_the_same_answer(model, expected):
    assert of_attacks(model) == expected and of_purify(model) == expected


def test_keys_are_handed_to_those_that_take_them():
    x, keys = torch.zeros(3), torch.arange(3)
    assert call(Keyed(), x, keys).tolist() == [0, 1, 2]
    for model in (Optional(), Plain(), keyed, torch.relu):
        assert call(model, x, keys).tolist() == [0, 0, 0]
