"""Standard normals that are a pure function of (key, stage, step), and the Brownian motion made from them.

A key is one int64 per image and draw. Nothing is stored and no generator is involved: an image's noise does not depend
on the batch it sits in, on what was drawn before, or on the device (up to rounding). The bits come from Philox4x32-10
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a counter-based generator that passes BigCrush: the
image's key is Philox's key; stage, step and position are its counter.
"""

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(
    counter: tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 on unsigned 32-bit words kept in int64 tensors; counter words and key words broadcast against each
    other.
    """
    k0, k1 = key
    c0, c1, c2, c3 = (
        word if isinstance(word, Tensor) else torch.full((), word, dtype=torch.int64, device=k0.device)
        for word in counter
    )
    for _ in range(_ROUNDS):
        # The int64 products wrap modulo 2^64, which leaves all 64 bits of the 32x32 product in place.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def noise_keys(seed: int, image_ids: Tensor | Sequence[int], draw: int | Tensor) -> Tensor:
    """Keys of one draw for each image: equal arguments give equal noise, anything else independent noise.

    Args:
        seed: of the experiment, any int64.
        image_ids: (b,), integers that identify the images, for instance their positions in the test set: a tensor, or a
            sequence such as a range.
        draw: number of the draw, from 0; or (b,) int64, one for each image, on the device of `image_ids`.

    Returns:
        (b,) int64, on the device of `image_ids`.
    """
    image_ids = torch.as_tensor(image_ids)
    if image_ids.ndim != 1 or image_ids.is_floating_point() or image_ids.dtype == torch.bool:
        raise ValueError(
            f"image_ids must be an integer tensor of shape (b,), got {image_ids.dtype} of shape"
            f" {tuple(image_ids.shape)}"
        )
    return derive_keys(image_ids.long(), draw, seed, Purpose.DRAW)


# Two draws are independent because Philox is never asked the same of one key for two uses. So whoever hands a key on
# hands on a derived one, unless what gets it draws at other stages; and no module draws a stage's step twice. The
# integers are part of every recorded number: new uses get new ones.


class Purpose(IntEnum):
    """What keys are derived for; keys of different purposes are independent.

    The words of a key and normals both come from Philox, whose key is the seed for the first and the image's key for
    the second: the two meet only for an image whose key, chosen by hand, is the seed itself.
    """

    DRAW = 0  # of an image, by `noise_keys`
    FRESH = 1  # a call without keys
    VOTE = 2  # of `DefendedClassifier.predict`
    FIXED = 3  # one for all images
    TIME = 4  # where `uniform` is asked: a random t_star, the level of a step of `Likelihood`
    ROUND = 5  # stages of `Sequential`, passes of `GDMP`, steps of `Likelihood`
    COPY = 6  # of `DefendedClassifier`
    CLASSIFIER = 7  # what stands behind, where it draws too


class Stage(IntEnum):
    """What the normals of one key are for; normals of different stages are independent."""

    FORWARD = 0  # the diffusion to t_star
    INCREMENT = 1  # of the Brownian motion over a step, or a step's own normals
    AREA = 2  # of the Brownian motion over a step
    BRIDGE = 3  # inside a step, by node
    BRIDGE_AREA = 4
    CHURN = 5  # `Heun`
    CORRECTOR = 6  # `PredictorCorrector`
    SMOOTHING = 7  # `Smoothed`
    GUIDE = 8  # the diffused target of `GDMP`
    LOSS = 9  # `Likelihood` and `DiffusionClassifier`


def derive_keys(keys: Tensor, index: int | Tensor, seed: int, purpose: Purpose) -> Tensor:
    """(b,) int64 keys that are a pseudo-random function of (key, index mod 2^32, seed, purpose)."""
    seed_low, seed_high = (torch.tensor(word, device=keys.device) for word in (seed & _MASK, (seed >> 32) & _MASK))
    low, high, _, _ = philox((*_words(keys), index & _MASK, int(purpose)), (seed_low, seed_high))
    return low | (high << 32)


def uniform(keys: Tensor, purpose: Purpose) -> Tensor:
    """(b,) float64 in [0, 1): one number that is a pseudo-random function of (key, purpose)."""
    return ((derive_keys(keys, 0, 0, purpose) >> 11) & (2**53 - 1)).double() * 2.0**-53


def check_keys(keys: Tensor, count: int) -> None:
    """Raises ValueError unless `keys` are int64 of shape (count,)."""
    if keys.shape != (count,) or keys.dtype != torch.int64:
        raise ValueError(
            f"keys must be int64 of shape ({count},), one for each image, got {keys.dtype} of shape {tuple(keys.shape)}"
        )


def standard_normal(
    keys: Tensor,
    stage: int,
    step: int,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    node: int | Tensor = 0,
) -> Tensor:
    """Independent N(0, 1) numbers for each key.

    Args:
        keys: (b,) int64.
        stage: what the numbers are for, in [0, 2^32).
        step: index within the stage, in [0, 2^32).
        shape: of one image's numbers.
        dtype: of the result; the numbers are made in float32 whatever it is.
        node: index within the step, in [0, 2^32), or (b,) int64, one for each key.

    Returns:
        (b, *shape), on the device of `keys`.
    """
    count = math.prod(shape)
    blocks = -(-count // 4)
    position = torch.arange(blocks, device=keys.device)
    low, high = _words(keys)
    node = node[:, None] if isinstance(node, Tensor) else node
    words = philox((position, step & _MASK, stage & _MASK, node & _MASK), (low[:, None], high[:, None]))
    # Box-Muller: uniforms in (0, 1], so that the logarithm is finite.
    radius0, angle0, radius1, angle1 = ((word.float() + 0.5) * 2.0**-32 for word in words)
    normals = []
    for radius, angle in ((radius0, angle0), (radius1, angle1)):
        r, phi = radius.log().mul_(-2).sqrt_(), angle.mul_(2 * math.pi)
        normals += [r * phi.cos(), r * phi.sin()]
    return torch.cat(normals, dim=1)[:, :count].reshape(len(keys), *shape).to(dtype)


def _words(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The low and high 32 bits of int64 keys."""
    return keys & _MASK, (keys >> 32) & _MASK


class KeyedBrownian:
    """A Brownian motion W per key over step time [0, steps], in the form that torchsde asks for.

    The increment over [i, i + 1] is `standard_normal(keys, Stage.INCREMENT, i)`. Inside a step the path follows by
    Levy's construction on dyadic times, conditioned on the increment and on the space-time area (Foster, Lyons &
    Oberhauser 2020, arXiv 1905.09142); between the finest dyadic times it is linear. So every interval is answered
    consistently, in any order and direction, with nothing stored.

    Args:
        keys: (b,) int64.
        size: numbers per image.
        dtype: of the answers.
    """

    levy_area_approximation = "space-time"
    _DEPTH = 16

    def __init__(self, keys: Tensor, size: int, dtype: torch.dtype):
        self.keys = keys
        self.shape = torch.Size((len(keys), size))
        self.dtype = dtype
        self.device = keys.device
        self.queries = 0

    def __call__(
        self, ta: Tensor | float, tb: Tensor | float, return_U: bool = False, return_A: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """W(tb) - W(ta), and with `return_U` also the integral of W(s) - W(ta) over s in [ta, tb]; (b, size) each."""
        if return_A:
            raise NotImplementedError("the Levy area between channels is not available: the noise here is additive")
        self.queries += 1
        start, end = float(ta), float(tb)
        w = area = torch.zeros((), dtype=self.dtype, device=self.device)
        for step in range(math.floor(start), math.ceil(end)):
            a, b = max(start - step, 0.0), min(end - step, 1.0)
            increment, integral = self._within(step, a, b, return_U)
            area = area + (b - a) * w + integral
            w = w + increment
        return (w, area) if return_U else w

    def _within(self, step: int, a: float, b: float, with_area: bool) -> tuple[Tensor, Tensor | float]:
        """Increment over [step + a, step + b] and the integral of W(s) - W(step + a) over it."""
        if (a, b) == (0.0, 1.0):
            w = self._normal(Stage.INCREMENT, step)
            return w, (w / 2 + self._normal(Stage.AREA, step) / math.sqrt(12) if with_area else 0.0)
        w_a, integral_a = self._value(step, a)
        w_b, integral_b = self._value(step, b)
        return w_b - w_a, integral_b - integral_a - (b - a) * w_a

    def _value(self, step: int, r: float) -> tuple[Tensor, Tensor]:
        """W(step + r) - W(step), and its integral from step to step + r."""
        w, h = self._normal(Stage.INCREMENT, step), self._normal(Stage.AREA, step) / math.sqrt(12)
        left_w, left_integral = torch.zeros_like(w), torch.zeros_like(w)
        left, length = 0.0, 1.0
        nodes = self._nodes(r)
        bridges, areas = self._normals(Stage.BRIDGE, step, nodes), self._normals(Stage.BRIDGE_AREA, step, nodes)
        for normal, area_normal in zip(bridges, areas, strict=True):
            z, q = math.sqrt(length) / 4 * normal, math.sqrt(length / 48) * area_normal
            w1, h1, h2 = w / 2 + 1.5 * h + z, h / 4 - z / 2 + q, h / 4 - z / 2 - q
            length /= 2
            if r < left + length:
                w, h = w1, h1
            else:
                left_integral = left_integral + length * (left_w + w1 / 2 + h1)
                left_w = left_w + w1
                left, w, h = left + length, w - w1, h2
        if r >= left + length:
            return left_w + w, left_integral + length * (left_w + w / 2 + h)
        along = (r - left) / length
        return left_w + along * w, left_integral + (r - left) * (left_w + along * w / 2)

    def _nodes(self, r: float) -> list[int]:
        """The intervals that are halved on the way to r, in the order of a heap: 1 is the whole step, 2 and 3 its
        halves.
        """
        nodes, left, length, node = [], 0.0, 1.0, 1
        while left < r < left + length and node < 2**self._DEPTH:
            nodes.append(node)
            length /= 2
            right = r >= left + length
            left, node = left + right * length, 2 * node + right
        return nodes

    def _normal(self, stage: Stage, step: int) -> Tensor:
        return standard_normal(self.keys, stage, step, tuple(self.shape[1:]), self.dtype)

    def _normals(self, stage: Stage, step: int, nodes: list[int]) -> Tensor:
        """(len(nodes), b, size): all at once, which is many times faster than one by one."""
        node = torch.tensor(nodes, dtype=torch.int64, device=self.device).repeat_interleave(len(self.keys))
        normals = standard_normal(self.keys.repeat(len(nodes)), stage, step, tuple(self.shape[1:]), self.dtype, node)
        return normals.reshape(len(nodes), *self.shape)
