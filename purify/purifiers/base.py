"""What all purifiers share: the value range, the keys, the checks."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from purify.noise import Purpose, derive_keys
from purify.score import ScoreModel


class Purifier(nn.Module):
    """Images in [0, 1] in, images in about [0, 1] out (not clamped: a clamp would hide gradients).

    A subclass implements `purify` on the diffusion's scale.

    Args:
        score: the score model; frozen or not, it is never altered.
        seed: of the counter that makes fresh keys for calls without keys.

    Raises:
        ValueError: a class-conditional score model without a class.
    """

    def __init__(self, score: ScoreModel, seed: int = 0):
        super().__init__()
        score.check_class()
        self.score = score
        self.seed = seed
        self._calls = 0

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Purifies a batch.

        Args:
            x: (b, c, h, w), floating point, in [0, 1].
            keys: (b,) int64 from `noise_keys`: each image's randomness. None draws fresh keys from the module's own counter, so every call
                is random and a program run twice repeats itself.

        Returns:
            (b, c, h, w), dtype and device of `x`, in about [0, 1].

        Raises:
            ValueError: wrong shape, channels, size or dtype, or keys that do not fit.
        """
        self._check(x, keys)
        keys = self._fresh_keys(x) if keys is None else keys.to(x.device)
        return self.score.to_unit(self.purify(self.score.from_unit(x), keys))

    def purify(self, x: Tensor, keys: Tensor) -> Tensor:
        """`forward` on the diffusion's scale: `x` (b, c, h, w) in `score.value_range`, `keys` (b,) int64 on the same device."""
        raise NotImplementedError

    def _fresh_keys(self, x: Tensor) -> Tensor:
        self._calls += 1
        return derive_keys(torch.arange(len(x), device=x.device), self._calls, self.seed, Purpose.FRESH)

    def _check(self, x: Tensor, keys: Tensor | None) -> None:
        channels = self.score.image_shape[0] if self.score.image_shape else None
        if x.ndim != 4 or (channels is not None and x.shape[1] != channels):
            raise ValueError(f"x must be images of shape (b, {channels or 'c'}, h, w), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"x must be floating point in [0, 1], got {x.dtype}")
        multiple = getattr(self.score.network, "size_multiple", 1)
        if x.shape[2] % multiple or x.shape[3] % multiple:
            raise ValueError(f"x must have a height and width that are multiples of {multiple} for this network, got {tuple(x.shape[2:])}")
        if keys is not None and (keys.shape != (len(x),) or keys.dtype != torch.int64):
            raise ValueError(f"keys must be int64 of shape ({len(x)},), one for each image, got {keys.dtype} of shape {tuple(keys.shape)}")


def choose(name: str, value: str, known: Collection[str]) -> None:
    """Raises ValueError unless `value`, of the argument `name`, is one of `known`."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")
