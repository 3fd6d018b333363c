"""Hashes of tensors, and the form of a record's entries."""

import hashlib
from collections.abc import Callable, Iterator

from torch import Tensor

Entries = Iterator[tuple[str, Callable[[], str]]]
"""Names, each with what measures its value."""


def digest(*tensors: Tensor | None) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            found.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
