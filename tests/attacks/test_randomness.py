import numpy as np
import torch
from scipy import stats

from attacks.randomness import default_keys, mix, uniform


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
