import math

import numpy as np
import pytest
import torch
import torchsde
from scipy import stats

from attacks.randomness import mix
from benchmarks.evaluation.evaluate import ATTACK_DRAW
from purify import noise_keys
from purify.noise import KeyedBrownian, Purpose, Stage, derive_keys, philox, standard_normal


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    """The known-answer vectors of Random123 for philox4x32-10."""
    words = philox(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))
    assert tuple(int(w) for w in words) == expected


def test_normals_are_normal_and_independent():
    keys = noise_keys(0, torch.arange(200), 0)
    first = standard_normal(keys, 0, 0, (1000,)).numpy()
    assert stats.kstest(first.ravel(), "norm").pvalue > 1e-3
    others = [
        standard_normal(keys, 1, 0, (1000,)),
        standard_normal(keys, 0, 1, (1000,)),
        standard_normal(keys, 0, 0, (1000,), node=1),
    ]
    others += [
        standard_normal(noise_keys(0, torch.arange(200), 1), 0, 0, (1000,)),
        standard_normal(noise_keys(1, torch.arange(200), 0), 0, 0, (1000,)),
    ]
    others += [torch.from_numpy(np.roll(first, 1, axis=0)), torch.from_numpy(np.roll(first, 1, axis=1))]
    for other in others:  # correlation of 200,000 independent pairs has standard deviation 0.0022
        assert abs(np.corrcoef(first.ravel(), other.numpy().ravel())[0, 1]) < 5 * 0.00224


def streams(count=20_000):
    """(streams, count): every combination of neighbouring raw keys, keys of noise_keys, stages, steps and nodes."""
    keys = torch.cat(
        [
            torch.arange(4),
            torch.tensor([2**32, 2**33]),
            noise_keys(0, torch.arange(2), 0),
            noise_keys(0, torch.arange(2), 2**32 - 1),
        ]
    )
    parts = [
        standard_normal(keys, stage, step, (count,), node=node)
        for stage in (0, 1, 2)
        for step in (0, 1, 255)
        for node in (0, 1)
    ]
    return torch.cat(parts).double()


def test_every_stream_is_normal():
    """Kolmogorov-Smirnov stream by stream, then once more on the p-values, which must be uniform."""
    p_values = [stats.kstest(stream.numpy(), "norm").pvalue for stream in streams(5000)]
    assert min(p_values) > 1e-3 / len(p_values)
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("moment", [1, 2])
def test_streams_are_uncorrelated(moment):
    """Neither the numbers nor their squares: all 16,110 pairs of 180 streams, bound for the largest of so many at p <
    1e-4.
    """
    values = streams() ** moment
    correlation = torch.corrcoef(values).fill_diagonal_(0)
    assert correlation.abs().max() * math.sqrt(values.shape[1]) < stats.norm.isf(1e-4 / 2 / 16_110)
    off = correlation[torch.triu_indices(180, 180, 1).unbind()] * math.sqrt(values.shape[1])
    assert stats.kstest(off.numpy(), "norm").pvalue > 1e-3


def test_attack_and_evaluation_draws_are_disjoint():
    """No key of an attack's draw, nor any that `attacks` derives from it, is one of an evaluation draw."""
    ids = torch.arange(500)
    evaluation = torch.cat([noise_keys(0, ids, draw) for draw in range(64)])
    attack = noise_keys(0, ids, ATTACK_DRAW)
    derived = torch.cat(
        [
            attack,
            *(mix(mix(attack, 0), 1, step) for step in range(50)),
            *(mix(mix(mix(attack, 0), 1, 3), draw) for draw in range(20)),
        ]
    )
    assert len(torch.cat([evaluation, derived]).unique()) == len(evaluation) + len(derived)


def test_normals_do_not_depend_on_the_batch():
    keys = noise_keys(3, torch.tensor([5, 9, 2]), 4)
    whole = standard_normal(keys, 1, 7, (1, 28, 28))
    for i in range(3):
        assert torch.equal(whole[i], standard_normal(keys[i : i + 1], 1, 7, (1, 28, 28))[0])


def test_float64_sees_the_float32_path():
    keys = noise_keys(0, torch.arange(2), 0)
    assert torch.equal(standard_normal(keys, 0, 0, (8,), torch.float64), standard_normal(keys, 0, 0, (8,)).double())


def test_keys_are_distinct_across_arguments_and_purposes():
    ids = torch.arange(1000)
    keys = [noise_keys(seed, ids, draw) for seed in (0, 1, -1, 2**40) for draw in (0, 1, 2)]
    keys += [derive_keys(ids, i, 0, purpose) for i in (0, 1) for purpose in (Purpose.FRESH, Purpose.VOTE)]
    assert len(torch.cat(keys).unique()) == 1000 * len(keys)


def test_any_int64_is_a_key():
    extremes = torch.tensor([-(2**63), -1, 0, 2**63 - 1])
    numbers = standard_normal(extremes, 0, 0, (1000,))
    assert numbers.isfinite().all()
    assert numbers.std(1).sub(1).abs().max() < 0.15


def test_noise_keys_refuses_floats():
    with pytest.raises(ValueError, match="image_ids must be an integer tensor of shape"):
        noise_keys(0, torch.zeros(3), 0)


def brownian(images=2000, size=2):
    return KeyedBrownian(noise_keys(0, torch.arange(images), 0), size, torch.float64)


def test_increments_are_the_keyed_normals_and_add_up():
    w = brownian(3)
    assert torch.equal(w(4, 5), standard_normal(w.keys, Stage.INCREMENT, 4, (2,), torch.float64))
    torch.testing.assert_close(w(1, 5), w(1, 2) + w(2, 3) + w(3, 5))
    torch.testing.assert_close(w(1.3, 4.6), w(1.3, 1.5) + w(1.5, 1.71) + w(1.71, 3.2) + w(3.2, 4.6))


def test_areas_add_up():
    """int_a^c (W - W_a) = int_a^b (W - W_a) + int_b^c (W - W_b) + (c - b) (W_b - W_a), also inside a step and across
    steps.
    """
    w = brownian(5)
    for a, b, c in ((0, 1, 3), (0.25, 0.5, 1), (0.125, 1.75, 2.5), (0.3, 0.41, 0.8)):
        w_ab, u_ab = w(a, b, return_U=True)
        _, u_bc = w(b, c, return_U=True)
        _, u_ac = w(a, c, return_U=True)
        torch.testing.assert_close(u_ac, u_ab + u_bc + (c - b) * w_ab, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (0.5, 1), (0.375, 0.5), (0.7, 1.6), (2, 5)])
def test_increments_and_areas_have_the_right_law(a, b):
    """W ~ N(0, h), U ~ N(0, h^3/3), Cov(W, U) = h^2/2 over an interval of length h; 4,000 samples."""
    w, u = (part.numpy().ravel() for part in brownian()(a, b, return_U=True))
    h = b - a
    assert stats.kstest(w / math.sqrt(h), "norm").pvalue > 1e-3
    assert stats.kstest(u / math.sqrt(h**3 / 3), "norm").pvalue > 1e-3
    assert np.corrcoef(w, u)[0, 1] == pytest.approx(math.sqrt(3) / 2, abs=0.02)


def test_disjoint_intervals_are_independent():
    w = brownian()
    for (a, b), (c, d) in (((0, 0.5), (0.5, 1)), ((0.25, 0.375), (0.375, 0.5)), ((0, 0.7), (0.7, 2))):
        assert abs(np.corrcoef(w(a, b).numpy().ravel(), w(c, d).numpy().ravel())[0, 1]) < 5 / math.sqrt(4000)


def test_levy_area_is_refused():
    with pytest.raises(NotImplementedError, match="Levy area"):
        brownian(1)(0, 1, return_A=True)


def test_reversed_path_is_the_same_path():
    """What torchsde's adjoint walks on: time negated."""
    w = brownian(3)
    backwards = torchsde.ReverseBrownian(w)
    for a, b in ((2, 3), (2.25, 4.5)):
        torch.testing.assert_close(backwards(-b, -a), w(a, b))


class OrnsteinUhlenbeck:
    """dx = -x du + du-noise, additive."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, u, x):
        return -x

    def g(self, u, x):
        return 0.7 * torch.ones_like(x)


def solve_ou(dt, method, **options):
    images = 60
    bm = KeyedBrownian(noise_keys(0, torch.arange(images), 0), 3, torch.float64)
    start = torch.ones(images, 3, dtype=torch.float64)
    return torchsde.sdeint(
        OrnsteinUhlenbeck(),
        start,
        torch.tensor([0.0, 4.0], dtype=torch.float64),
        bm=bm,
        dt=dt,
        method=method,
        **options,
    )[-1]


@pytest.mark.parametrize(("method", "order"), [("euler", 1.0), ("srk", 1.5)])
def test_strong_order_on_one_path(method, order):
    """Finer steps see the same path through the bridge: errors fall at the method's strong order for additive noise."""
    exact = solve_ou(1 / 128, "srk")
    errors = [(solve_ou(dt, method) - exact).square().mean().sqrt().item() for dt in (1 / 2, 1 / 4, 1 / 8)]
    slopes = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert np.mean(slopes) > order - 0.15


def test_adaptive_steps_solve_the_same_path():
    """Arbitrary times, asked for in any order, as an adaptive solver does when it rejects a step."""
    fine = solve_ou(1 / 64, "srk")
    adaptive = solve_ou(0.3, "srk", adaptive=True, rtol=1e-3, atol=1e-3)
    assert (adaptive - fine).abs().max() < 1e-2 < 5e-2 < (solve_ou(1.0, "srk") - fine).abs().max()


def test_image_ids_may_be_any_sequence_of_integers():
    assert torch.equal(noise_keys(0, range(3), 1), noise_keys(0, torch.arange(3), 1))
    with pytest.raises(ValueError, match="image_ids must be an integer tensor"):
        noise_keys(0, [0.5, 1.0], 1)
