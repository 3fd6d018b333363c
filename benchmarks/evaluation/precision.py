"""The arithmetic of a measurement."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No lower precision behind the caller's back, and repeatable kernels: TF32 is cuDNN's default, and autocast may be
    open.
    """
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        torch.autocast(device.type, enabled=False),
    ):
        yield
