"""The attack's own randomness: a 64-bit mix of the keys it is given, in a domain of its own.

The model under attack makes its noise from the keys that it is called with; an attack calls it with keys derived here,
so neither its starting points nor its draws repeat those of an evaluation under the original keys.

What derived keys are for is registered in this file, one enumeration for each space: the keys of a call, of a run (a
restart, or a run towards one class), or of a step. The numbers fix every result that was ever recorded. No two of a
space are equal, and the numbers of runs, which share the space of a call, pass over those of its purposes.
"""

from enum import IntEnum, unique

import torch
from torch import Tensor

_DOMAIN = 0x61747461636B7321  # "attacks!"
_BEYOND = 1 << 32  # more than any purpose, and than any attack's runs


class Purpose(IntEnum):
    """What keys are derived for."""


@unique
class OfCaller(Purpose):
    """What a caller derives from the keys that it then hands to an attack."""

    TARGET = 0x54


@unique
class OfPGDRun(Purpose):
    """Keys of a run of `PGD`."""

    START, STEP, SELECT, STOP = range(4)


@unique
class OfAPGD(Purpose):
    """Keys of a call of `APGD`, beside its runs."""

    TARGETS = 5


@unique
class OfAscent(Purpose):
    """Keys of a run of APGD, whoever makes it; DiffAttack's and DiffHammer's begin elsewhere."""

    START, STEP, STOP, CHECK, SELECT = range(5)


@unique
class OfClimb(Purpose):
    """Keys of a call of `DeviatedReconstruction` or `DiffHammer`."""

    RUN, BEGIN = range(2)


@unique
class OfFAB(Purpose):
    """Keys of a call of `FAB`, beside its runs."""

    SEARCH = 3
    TARGETS = 5
    SELECT = 6
    CLEAN = 7


@unique
class OfFABRun(Purpose):
    """Keys of a run of `FAB`."""

    START = 0
    STEP = 1
    CHECK = 2
    STOP = 4


@unique
class OfSearch(Purpose):
    """Keys of a run whose result `attacks.restarts.best_of` judges: of Square, or along a path."""

    START, PROPOSE, ANSWER, CONFIRM = range(4)  # the last three: of Square
    STEP, STOP, CHOOSE = range(0x10, 0x13)


@unique
class OfSPSAStep(Purpose):
    """Keys of a step of `SPSA`."""

    DIRECTION, DRAW = range(1, 3)


@unique
class OfAutoAttack(Purpose):
    """Keys of a call of `AutoAttack`."""

    CHOOSE = 0x41


@unique
class OfEOTAutoAttack(Purpose):
    """Keys of a call of `EOTAutoAttack`."""

    ATTACK, STOP, SELECT = range(3)


@unique
class OfStrongest(Purpose):
    """Keys of a call of `Strongest`."""

    ATTACK, SELECT, STOP = range(3)


def default_keys(count: int, device: torch.device) -> Tensor:
    """Keys for a caller that gives none: 0 .. count - 1."""
    return torch.arange(count, device=device)


def derive(keys: Tensor, purpose: Purpose, *indices: int | Tensor) -> Tensor:
    """int64 keys for one purpose, or for the so-manieth of its uses."""
    return mix(keys, purpose, *indices)


def run_keys(keys: Tensor, number: int, beside: type[Purpose] | None = None) -> Tensor:
    """int64 keys for one of several runs of a call, from 0, which has purposes `beside` its runs.

    A number that one of them or of the caller's has is passed over: its run gets one that nothing else reaches.
    """
    taken = number in {*OfCaller, *(beside or ())}
    return mix(keys, number + _BEYOND if taken else number)


def draw_keys(keys: Tensor, draw: int) -> Tensor:
    """int64 keys that a model is called with, for one of several draws from 0."""
    return mix(keys, draw)


def mix(keys: Tensor, *indices: int | Tensor) -> Tensor:
    """int64 keys that are a pseudo-random function of (keys, indices); indices broadcast against keys.

    One round of SplitMix64's finaliser (Steele et al. 2014) for the domain and for each index.
    """
    keys = _finalise(keys + _DOMAIN)
    for index in indices:
        keys = _finalise(keys ^ _finalise(torch.as_tensor(index, device=keys.device, dtype=torch.int64)))
    return keys


def uniform(keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """(b, *shape) independent uniforms in [0, 1) for each key."""
    position = torch.arange(int(torch.Size(shape).numel()), device=keys.device)
    bits = _finalise(mix(keys)[:, None] + position * _signed(0x9E3779B97F4A7C15))
    return (_shift(bits, 40).to(torch.float32) * 2.0**-24).to(dtype).reshape(len(keys), *shape)


def _finalise(z: Tensor) -> Tensor:
    z = z + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
