"""Every process that the package knows, for tests that hold for all of them."""

import torch

from purify.schedules import EDM, VE, DiscreteVP, Functions, LinearVP, SubVP


def vp_scale(t):
    return torch.exp(-0.5 * (0.1 * t + 9.95 * t**2))


def vp_ratio(t):
    return torch.expm1(0.1 * t + 9.95 * t**2).sqrt()


def sub_vp_ratio(t):
    return 2 * torch.sinh(0.5 * (0.1 * t + 9.95 * t**2))


def one(t):
    return 0 * t + 1


def same(t):
    return 1 * t


def geometric(t):
    return 0.01 * 5000.0**t


def remaining(t):
    return 1 - t


def odds(t):
    return t / (1 - t)


BY_FUNCTIONS = [
    (LinearVP(), Functions(vp_scale, vp_ratio)),
    (SubVP(), Functions(vp_scale, sub_vp_ratio)),
    (VE(), Functions(one, geometric)),
    (EDM(), Functions(one, same, t_max=80.0)),
]
"""Named processes, each with the same one given by its functions."""

STRAIGHT = Functions(remaining, odds, t_max=0.999)
"""x_t = (1 - t) x_0 + t n: rectified flow's."""

CHAINS = [DiscreteVP.linear(), DiscreteVP.cosine(), DiscreteVP.scaled_linear(50), DiscreteVP((0.1, 0.2))]
NAMED = [LinearVP(), LinearVP(0.3, 5.0), SubVP(), VE(), VE(0.02, 100.0), EDM(), *CHAINS]
PROCESSES = [*NAMED, STRAIGHT, *(given for _, given in BY_FUNCTIONS)]
