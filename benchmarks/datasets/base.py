"""What the families of data sets share."""

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmarks.datasets.images import ImageFiles
from purify.zoo.folders import cache_folder


@dataclass(frozen=True)
class Dataset:
    """Images, labels, and the class names in label order.

    Attributes:
        images: uint8 (n, c, h, w) in [0, 255]: a tensor, or of large sets `ImageFiles`, which are decoded when they are
            asked for. Both take a slice, an int64 tensor or a list of positions in `[]`, and have `shape`; `images[:]`
            is a tensor in either case.
        labels: (n,) int64, positions in `classes`.
        classes: names.
    """

    images: Tensor | ImageFiles
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def as_floats(images: Tensor) -> Tensor:
    """uint8 in [0, 255] -> float32 in [0, 1]."""
    return images.float() / 255


def data_folder(root: str | None) -> Path:
    """Where the files of official data sets lie: `root`, else $PURIFY_DATA, else `data` in the cache folder."""
    return Path(root or os.environ.get("PURIFY_DATA") or cache_folder() / "data")


def user_path(path: str, root: str | None) -> Path:
    """A path that the user wrote into a name: relative to `root`, else to $PURIFY_DATA, else to the current folder."""
    return Path(root or os.environ.get("PURIFY_DATA") or ".") / path
