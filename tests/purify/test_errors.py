"""Bad input: one clear message each."""

import pytest
import torch

from purify import DiffPure

GOOD = torch.rand(2, 1, 28, 28)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t_star": 0.0}, r"t_star must lie in \(0, 1\], got 0.0"),
        ({"t_star": 1.5}, r"t_star must lie in \(0, 1\], got 1.5"),
        ({"t_star": float("nan")}, r"t_star must lie in \(0, 1\], got nan"),
        ({"t_star": 0.9}, r"t_star=0.9 is beyond t_max=0.5"),
        ({"t_end": 0.2}, r"t_end must lie in \[0, t_star=0.1\), got 0.2"),
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"steps": 1.5}, "steps must be a positive integer, got 1.5"),
        ({"eta": -1.0}, "eta must be at least 0, got -1.0"),
        ({"gradient": "full"}, "gradient='full' is not one of exact, backprop, adjoint, bpda"),
        ({"solver": "euler"}, "solver='euler' is not one of torchsde"),
        ({"method": "heun"}, "method='heun' is not one of torchsde's Ito methods euler, milstein, srk"),
        ({"grid": "cubic"}, "grid='cubic' is not one of uniform, quadratic"),
        ({"method": "srk", "steps": 10}, "3 a step with method='srk': 10 is not a multiple"),
        ({"method": "srk", "steps": 9, "gradient": "adjoint"}, 'gradient="adjoint" needs a solver that has one'),
    ],
)
def test_construction(unet_score, arguments, message):
    unet_score.t_max = 0.5
    with pytest.raises(ValueError, match=message):
        DiffPure(unet_score, **{"t_star": 0.1, "steps": 10, **arguments})


@pytest.mark.parametrize(
    ("x", "keys", "message"),
    [
        (torch.rand(2, 3, 28, 28), None, r"x must be images of shape \(b, 1, h, w\), got \(2, 3, 28, 28\)"),
        (torch.rand(1, 28, 28), None, r"x must be images of shape \(b, 1, h, w\), got \(1, 28, 28\)"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), None, r"x must be floating point in \[0, 1\], got torch.uint8"),
        (torch.rand(2, 1, 27, 28), None, r"multiples of 4 for this network, got \(27, 28\)"),
        (GOOD, torch.zeros(3, dtype=torch.int64), r"keys must be int64 of shape \(2,\).* of shape \(3,\)"),
        (GOOD, torch.zeros(2), r"keys must be int64 of shape \(2,\).*got torch.float32"),
    ],
)
def test_call(unet_score, x, keys, message):
    with pytest.raises(ValueError, match=message):
        DiffPure(unet_score, 0.1, 2)(x, keys)
