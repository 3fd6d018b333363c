"""Images and labels by name. All data sets come as uint8 images (n, c, h, w) and int64 labels (n,)."""

import difflib
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.datasets import arrays, celeba_hq, cifar, fashion_mnist, folder, from_module, imagenet
from benchmarks.datasets.base import Dataset, as_floats
from benchmarks.datasets.errors import DatasetError
from benchmarks.datasets.fashion_mnist import FASHION_MNIST_CLASSES
from benchmarks.datasets.images import ImageFiles
from benchmarks.datasets.subsets import subset
from purify import plugins

__all__ = [
    "FASHION_MNIST_CLASSES",
    "Dataset",
    "DatasetError",
    "ImageFiles",
    "as_floats",
    "check_name",
    "known",
    "load",
    "subset",
]

_FAMILIES = (fashion_mnist, cifar, imagenet, celeba_hq, folder, from_module, arrays)
_BY_NAME: dict[tuple[str, bool], Callable[[str, str, str | None], Dataset]] = {
    (head, bool(colon)): family.load
    for family in _FAMILIES
    for head, colon, _ in (name.partition(":") for name in family.NAMES)
}


def known() -> tuple[str, ...]:
    """The names that `load` takes; a word in capitals after a colon stands for what the user fills in."""
    return tuple(name for family in _FAMILIES for name in family.NAMES)


def load(name: str, root: str | None = None) -> Dataset:
    """A data set by name.

    Args:
        name: one of `known()`:

            - "fashion-mnist-embedded" (the first 1,000 test images, packaged), "fashion-mnist-train",
              "fashion-mnist-test";
            - "cifar10-train", "cifar10-test", "cifar10-test-1000" (the first 1,000), "cifar100-train", "cifar100-test",
              see `cifar.load`;
            - "imagenet-val", "imagenet-robustbench", "imagenet-robustbench:PREPROCESSING", see `imagenet.load`;
            - "celeba-hq:ATTRIBUTE", "celeba-hq-train:ATTRIBUTE", "celeba-hq-val:ATTRIBUTE", "celeba-hq-test:ATTRIBUTE",
              see `celeba_hq.load`;
            - "folder:PATH", "folder:PATH@SIZE", see `folder.load`;
            - "npz:FILE" and "safetensors:FILE", see `arrays.read_npz` and `arrays.read_safetensors`;
            - "module:FILE.py:FUNCTION": your own code, which runs, or the name of an entry point of the group
              purify.datasets, see `from_module.load`;
            - several that are held in memory joined by "+": one data set.
        root: where the files lie. Default: the environment variable PURIFY_DATA; without it `data` in the cache folder
            for CIFAR, ImageNet and CelebA-HQ, Debian's package dataset-fashion-mnist for Fashion-MNIST, and the current
            folder for "folder:", "npz:" and "safetensors:".

    Raises:
        DatasetError: unknown name, or files missing or not usable.
    """
    check_name(name)
    if "+" in name:
        return _join([load(part, root) for part in name.split("+")], name)
    head, _, argument = name.partition(":")
    return _BY_NAME.get((head, bool(argument)), from_module.load)(head, argument, root)


def check_name(name: str) -> None:
    """Raises DatasetError for a name that no data set has, whether or not its files are here; a plug-in's is not
    checked.
    """
    for part in name.split("+"):
        head, _, argument = part.partition(":")
        if (head, bool(argument)) not in _BY_NAME and not plugins.is_plugin("datasets", part):
            raise DatasetError(f"unknown data set {part!r}{_near_miss(head)}; known: {', '.join(known())}")


def _near_miss(head: str) -> str:
    close = difflib.get_close_matches(head.lower(), [name for name, _ in _BY_NAME], 1, cutoff=0.5)
    return f" (did you mean {next(name for name in known() if name.partition(':')[0] == close[0])!r}?)" if close else ""


def _join(parts: list[Dataset], name: str) -> Dataset:
    if len({(part.images.shape[1:], part.classes) for part in parts}) > 1:
        described = ", ".join(f"{tuple(part.images.shape[1:])} in {len(part.classes)} classes" for part in parts)
        raise DatasetError(f"{name!r}: data sets of different shapes or classes cannot be joined: {described}")
    images = [part.images for part in parts if isinstance(part.images, Tensor)]
    if len(images) < len(parts):
        raise DatasetError(
            f"{name!r}: sets of image files cannot be joined; put the files into one folder and give it as"
            " 'folder:PATH'"
        )
    return Dataset(torch.cat(images), torch.cat([part.labels for part in parts]), parts[0].classes)
