"""The attack's own randomness: a 64-bit mix of the keys it is given, in a domain of its own.

The model under attack makes its noise from the keys that it is called with; an attack calls it with keys derived here,
so neither its starting points nor its draws repeat those of an evaluation under the original keys.
"""

import torch
from torch import Tensor

_DOMAIN = 0x61747461636B7321  # "attacks!"


def default_keys(count: int, device: torch.device) -> Tensor:
    """Keys for a caller that gives none: 0 .. count - 1."""
    return torch.arange(count, device=device)


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
