"""A user's own data set by the name "module:path.to.module:function" or "module:path/to/file.py:function", see
`purify.plugins`.
"""

import inspect

import torch
from torch import Tensor

from benchmarks.datasets.base import Dataset
from benchmarks.datasets.errors import DatasetError
from benchmarks.datasets.images import ImageFiles
from purify import plugins

NAMES = (plugins.FORM,)
_DATASET = "a benchmarks.datasets.Dataset"


def load(head: str, argument: str, root: str | None) -> Dataset:
    """What the function named "head:argument", or the entry point "head", returns; the user's code runs. A function
    with an argument `root` gets the folder that is asked for, or None.

    Raises:
        PluginError: no such module or file, it fails, no such name, not callable, it raises, or it returns something
            else than a `Dataset`, or one whose images or labels are not of the shapes and types that it promises.
        DatasetError: a `root` for a function that takes none.
    """
    name = f"{head}:{argument}" if argument else head
    make = plugins.load("datasets", name, f"a function without arguments, or with root, that returns {_DATASET}")
    takes_root = "root" in inspect.signature(make).parameters
    if root is not None and not takes_root:
        raise DatasetError(f"data.root={root!r}: {name} has no argument root; leave it out")
    found: Dataset = plugins.call(name, make, Dataset, _DATASET, **({"root": root} if takes_root else {}))
    _check(name, found)
    return found


def _check(name: str, found: Dataset) -> None:
    images, labels = found.images, found.labels
    if not isinstance(images, ImageFiles) and not (
        isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim == 4
    ):
        seen = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise plugins.PluginError(f"{name}: images must be a uint8 tensor (n, c, h, w), or ImageFiles, got {seen}")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (images.shape[0],):
        seen = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise plugins.PluginError(f"{name}: labels must be int64 ({images.shape[0]},), one for each image, got {seen}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(found.classes):
        raise plugins.PluginError(
            f"{name}: labels must be positions among the {len(found.classes)} classes, got {int(labels.min())} to"
            f" {int(labels.max())}"
        )
