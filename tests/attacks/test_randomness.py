import sys

import numpy as np
import pytest
import torch
from attack_models import Purified, small_attacks
from scipy import stats

import attacks
from attacks import randomness
from attacks.randomness import (
    OfAPGD,
    OfCaller,
    OfFAB,
    Purpose,
    default_keys,
    derive,
    mix,
    run_keys,
    uniform,
)


def splitmix64(z):
    """SplitMix64's next output for state z, in Python integers."""
    mask = 2**64 - 1
    z = (z + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_splitmix64_known_answer():
    """The first output of the reference implementation for seed 0 is 0xE220A8397B1DCDAF; mix(k) is its function of k
    plus the domain.
    """
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    for key in (0, 1, -5, 2**62):
        expected = splitmix64((key + 0x61747461636B7321) & (2**64 - 1))
        assert int(mix(torch.tensor([key]))) % 2**64 == expected


def test_mix_separates_all_arguments():
    keys = default_keys(500, torch.device("cpu"))
    results = [mix(keys), *(mix(keys, i) for i in range(5)), *(mix(keys, i, j) for i in range(5) for j in range(5))]
    assert len(torch.cat(results).unique()) == 500 * len(results)


def test_attack_keys_are_not_the_model_s_keys():
    keys = default_keys(1000, torch.device("cpu"))
    assert len(torch.cat([keys, *(mix(keys, i) for i in range(10))]).unique()) == 11_000


def test_uniforms():
    u = uniform(default_keys(100, torch.device("cpu")), (1000,), torch.float32).numpy()
    assert u.min() >= 0 and u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 5 / np.sqrt(u[1:].size)
    whole, part = uniform(torch.arange(5), (2, 3), torch.float64), uniform(torch.tensor([3]), (2, 3), torch.float64)
    assert torch.equal(whole[3], part[0])


@pytest.mark.parametrize("space", Purpose.__subclasses__(), ids=lambda space: space.__name__)
def test_purposes_of_a_space_differ(space):
    assert len(space) == len(space.__members__) == len({int(purpose) for purpose in space})


@pytest.mark.parametrize("beside", [None, OfAPGD, OfFAB])
def test_runs_do_not_meet_the_purposes_beside_them(beside):
    """Nor a random target's, which the caller of an attack draws from the same keys."""
    keys = torch.tensor([5])
    runs = [run_keys(keys, number, beside) for number in range(2000)]
    others = [derive(keys, purpose) for purpose in (*OfCaller, *(beside or ()))]
    assert len(torch.cat(runs + others).unique()) == len(runs) + len(others)


def test_runs_keep_their_numbers_where_nothing_meets():
    """Recorded results depend on them."""
    keys = torch.tensor([5])
    changed = {
        beside: [n for n in range(200) if not torch.equal(run_keys(keys, n, beside), mix(keys, n))]
        for beside in (None, OfAPGD, OfFAB)
    }
    assert changed == {None: [0x54], OfAPGD: [5, 0x54], OfFAB: [3, 5, 6, 7, 0x54]}


def many_runs():
    """Attacks whose runs come past all numbers of purposes."""
    linf = attacks.Linf(0.03)
    return [
        attacks.PGD(linf, steps=1, eot=2, restarts=90),
        attacks.APGD(linf, iterations=2, eot=5, target_classes=9),
        attacks.APGD(linf, iterations=2, restarts=90),
        attacks.FAB(linf, iterations=1, eot=8, target_classes=9, restarts=2, stop_draws=1),
        attacks.SPSA(linf, iterations=1, samples=2, restarts=90, stop_draws=1),
        attacks.Square(linf, queries=40, restarts=90, stop_draws=1),
        attacks.DiffHammer(linf, iterations=1, eot=2, restarts=20),
        attacks.EOTAutoAttack(linf, iterations=3, eot=2, queries=40, stop_draws=2),
        attacks.Strongest(linf, 2000, eot=4),
    ]


ATTACKS = [*small_attacks().values(), *many_runs()]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_no_two_uses_share_keys(attack, monkeypatch):
    """Every key that an attack derives for an image, and the caller's for a random target beside them, is derived for
    one thing only.
    """
    found: dict[int, set[tuple]] = {}

    def watched(keys, *indices):
        out = mix(keys, *indices)
        caller = sys._getframe(1)
        what = (caller.f_code.co_name, *(type(index).__name__ for index in indices if isinstance(index, Purpose)))
        numbers = [np.broadcast_to(np.asarray(index), len(keys)) for index in indices]
        for key, *of_key in zip(out.tolist(), *numbers, strict=True):
            found.setdefault(key, set()).add((*what, *map(int, of_key)))
        return out

    class Long(Purified):
        """Every image is hard to break: no run is left out."""

        def forward(self, x, keys):
            return super().forward(x, keys) + 100 * torch.nn.functional.one_hot(labels, 12)

    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels = Purified().classifier(x).argmax(1)
    model, keys = Long(), torch.tensor([11])
    monkeypatch.setattr(randomness, "mix", watched)
    derive(keys, OfCaller.TARGET)
    attack(model, x, labels, keys)
    shared = {key: uses for key, uses in found.items() if len(uses) > 1}
    assert found and not shared
