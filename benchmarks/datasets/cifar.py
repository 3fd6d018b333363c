"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the unpacked official archives, in the official order: 32 x 32 colour
images.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.datasets.arrays import read_npz
from benchmarks.datasets.base import Dataset, data_folder
from benchmarks.datasets.cifar_pickle import read_batch
from benchmarks.datasets.errors import DatasetError

NAMES = ("cifar10-train", "cifar10-test", "cifar10-test-1000", "cifar100-train", "cifar100-test")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_CIFAR100_NAMES.split())
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_COUNTS = {"train": 50_000, "test": 10_000}
_FIRST = 1000


@dataclass(frozen=True)
class _Family:
    """The official archives of one data set.

    Attributes:
        title: its name; `url` without "-binary.tar.gz".
        classes: names.
        folders: of the binary and the python archive, once unpacked.
        files: of each split in the binary archive; those of the python archive have no ".bin".
        label_bytes: of a binary record; the last one is the label.
        label_key: in a python batch.
    """

    title: str
    url: str
    classes: tuple[str, ...]
    folders: tuple[str, str]
    files: dict[str, tuple[str, ...]]
    label_bytes: int
    label_key: str


_FAMILIES = {
    "cifar10": _Family(
        "CIFAR-10",
        "https://www.cs.toronto.edu/~kriz/cifar-10",
        CIFAR10_CLASSES,
        ("cifar-10-batches-bin", "cifar-10-batches-py"),
        {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
        1,
        "labels",
    ),
    "cifar100": _Family(
        "CIFAR-100",
        "https://www.cs.toronto.edu/~kriz/cifar-100",
        CIFAR100_CLASSES,
        ("cifar-100-binary", "cifar-100-python"),
        {"train": ("train.bin",), "test": ("test.bin",)},
        2,
        "fine_labels",
    ),
}


def load(name: str, _argument: str, root: str | None) -> Dataset:
    """Images uint8 (n, 3, 32, 32), labels (n,); of CIFAR-100 the 100 fine classes.

    The unpacked folder (cifar-10-batches-bin, cifar-10-batches-py, cifar-100-binary or cifar-100-python) is in `root`,
    else in $PURIFY_DATA, else in `data` of the cache folder, or is that folder itself. "cifar10-test-1000", the first
    1,000 test images, also comes from an archive test_first1000.npz there or in its subfolder cifar10 (see
    `arrays.read_npz`).

    Raises:
        DatasetError: missing, or not the official files.
    """
    family_name, split, *first = name.split("-")
    family, folder = _FAMILIES[family_name], data_folder(root)
    files = _find(family, folder, split)
    if files:
        data = _read(family, files, _COUNTS[split] // len(files))
        return Dataset(data.images[:_FIRST], data.labels[:_FIRST], data.classes) if first else data
    extracts = [folder / "cifar10" / "test_first1000.npz", folder / "test_first1000.npz"] if first else []
    for extract in extracts:
        if extract.is_file():
            return _extract(extract)
    looked_for = " nor ".join(map(str, (*family.folders, *extracts)))
    raise DatasetError(
        f"{name!r} is not in {folder}, which has neither {looked_for}. Get it with `purify models fetch"
        f" {family_name}-binary`, or unpack {family.url}-binary.tar.gz there, or give the place of the unpacked folder"
        " as data.root (or the environment variable PURIFY_DATA)."
    )


def _find(family: _Family, root: Path, split: str) -> list[Path]:
    """The files of a split, of the binary archive if there are both; none where there is no archive."""
    plain = tuple(file.removesuffix(".bin") for file in family.files[split])
    for folder_name, names in zip(family.folders, (family.files[split], plain), strict=True):
        for folder in (root / folder_name, root):
            files = [folder / file for file in names]
            missing = [file.name for file in files if not file.is_file()]
            if missing and (folder != root or root.name == folder_name) and folder.is_dir():
                raise DatasetError(f"{folder} has no {', '.join(missing)}: unpack {family.title}'s archive anew")
            if not missing:
                return files
    return []


def _read(family: _Family, files: list[Path], count: int) -> Dataset:
    images, labels = [], []
    for file in files:
        if file.suffix == ".bin":
            size = count * (family.label_bytes + _PIXELS)
            if file.stat().st_size != size:
                raise DatasetError(
                    f"{file} has {file.stat().st_size} bytes, the official file has {size}: get"
                    f" {family.url}-binary.tar.gz anew"
                )
            records = np.fromfile(file, np.uint8).reshape(count, -1)
            images.append(records[:, family.label_bytes :])
            labels.append(records[:, family.label_bytes - 1].astype(np.int64))
        else:
            batch, batch_labels = read_batch(file, count, _PIXELS, family.label_key)
            images.append(batch)
            labels.append(batch_labels)
        if labels[-1].min() < 0 or labels[-1].max() >= len(family.classes):
            raise DatasetError(
                f"{file}: expected {count} labels from 0 to {len(family.classes) - 1}; this is not the official file"
            )
    joined = np.concatenate(images).reshape(-1, *_SHAPE)
    return Dataset(torch.from_numpy(joined), torch.from_numpy(np.concatenate(labels)), family.classes)


def _extract(path: Path) -> Dataset:
    data = read_npz(path)
    if data.images.shape != (_FIRST, *_SHAPE) or int(data.labels.max()) >= len(CIFAR10_CLASSES):
        raise DatasetError(
            f"{path}: expected {_FIRST} images (3, 32, 32) with labels from 0 to 9, got {tuple(data.images.shape)}"
        )
    return Dataset(data.images, data.labels, CIFAR10_CLASSES)
