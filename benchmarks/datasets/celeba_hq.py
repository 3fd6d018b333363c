"""CelebA-HQ (Karras et al. 2018) with CelebA's attributes, from the folder CelebAMask-HQ (Lee et al. 2020): 30,000
faces.

The splits are CelebA's official ones, by the number of the original image: up to 162,770 to train, up to 182,637 to
validate, then to test.
"""

import difflib
import os
from pathlib import Path

import torch

from benchmarks.datasets.base import Dataset, data_folder
from benchmarks.datasets.errors import DatasetError
from benchmarks.datasets.images import ImageFiles, Preparation

NAMES = ("celeba-hq:ATTRIBUTE", "celeba-hq-train:ATTRIBUTE", "celeba-hq-val:ATTRIBUTE", "celeba-hq-test:ATTRIBUTE")
_SPLITS = {"train": range(1, 162_771), "val": range(162_771, 182_638), "test": range(182_638, 202_600)}
_SIZE = 256
_IMAGES, _ATTRIBUTES, _MAPPING = "CelebA-HQ-img", "CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-to-CelebA-mapping.txt"
_HOW = (
    "Get CelebAMask-HQ.zip by way of https://github.com/switchablenorms/CelebAMask-HQ (free for research), unpack it,"
    " and give the folder in which CelebAMask-HQ lies as data.root (or the environment variable PURIFY_DATA)"
)


def load(name: str, attribute: str, root: str | None) -> Dataset:
    """Images uint8 (n, 3, 256, 256), decoded when they are asked for, resized from 1024 (bilinear, antialiased); labels
    1 where the attribute is there.

    "celeba-hq:ATTRIBUTE" has all images in the order of their numbers. The splits are in the order of CelebA's original
    numbers, as in DiffPure, which attacks images of the validation split. The folder CelebAMask-HQ with
    CelebA-HQ-img/0.jpg ..., CelebAMask-HQ-attribute-anno.txt and CelebA-HQ-to-CelebA-mapping.txt (only for splits) is
    in `root`, else in $PURIFY_DATA, else in `data` of the cache folder, or is that folder itself.

    Raises:
        DatasetError: missing files, an unknown attribute.
    """
    folder = _find(f"{name}:{attribute}", data_folder(root))
    labels = _labels(folder / _ATTRIBUTES, attribute)
    split = name.removeprefix("celeba-hq").removeprefix("-")
    if split:
        original = _original_numbers(folder / _MAPPING)
        unknown = sorted(labels.keys() - original.keys())
        if unknown:
            raise DatasetError(
                f"{folder / _MAPPING} has no line for image {unknown[0]}, which {_ATTRIBUTES} names. {_HOW}"
            )
        numbers = sorted((number for number in labels if original[number] in _SPLITS[split]), key=original.__getitem__)
    else:
        numbers = sorted(labels)
    there = set(os.listdir(folder / _IMAGES))
    missing = [number for number in numbers if f"{number}.jpg" not in there]
    if not numbers:
        raise DatasetError(f"{folder} has no images of {name!r}. {_HOW}")
    if missing:
        raise DatasetError(
            f"{folder / _IMAGES} lacks {len(missing):,} of the {len(numbers):,} images of {name!r}, the first is"
            f" {missing[0]}.jpg. {_HOW}"
        )
    files = [folder / _IMAGES / f"{number}.jpg" for number in numbers]
    images = ImageFiles(files, Preparation((_SIZE, _SIZE), resize=_SIZE))
    return Dataset(images, torch.tensor([labels[number] for number in numbers]), (f"not {attribute}", attribute))


def _find(name: str, root: Path) -> Path:
    for folder in (root / "CelebAMask-HQ", root):
        if (folder / _IMAGES).is_dir() and (folder / _ATTRIBUTES).is_file():
            return folder
    raise DatasetError(f"{name!r}: neither {root / 'CelebAMask-HQ'} nor {root} has {_IMAGES} and {_ATTRIBUTES}. {_HOW}")


def _lines(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}. {_HOW}") from error


def _labels(path: Path, attribute: str) -> dict[int, int]:
    """Number of an image -> 0 or 1. The file: how many images, the names of the attributes, then a line an image of its
    name and 1 or -1 for each.
    """
    lines = _lines(path)
    names = lines[1] if len(lines) > 1 else []
    if attribute not in names and names:
        close = difflib.get_close_matches(attribute, names, 1)
        raise DatasetError(
            f"unknown attribute {attribute!r}{f' (did you mean {close[0]!r}?)' if close else ''}; known:"
            f" {', '.join(names)}"
        )
    try:
        column = 1 + names.index(attribute)
        labels = {
            int(row[0].removesuffix(".jpg")): {"1": 1, "-1": 0}[row[column]]
            for row in lines[2:]
            if len(row) == 1 + len(names)
        }
        if len(labels) != int(lines[0][0]):
            raise ValueError(f"{len(labels)} whole lines where {lines[0][0]} are announced")
    except (KeyError, ValueError, IndexError) as error:
        raise DatasetError(f"{path} is not the official list of attributes: {error}. {_HOW}") from error
    return labels


def _original_numbers(path: Path) -> dict[int, int]:
    """Number in CelebA-HQ -> number in CelebA, from 1. The lines: number, position in CelebA from 0, file in CelebA; a
    header may be there.
    """
    try:
        numbers = {int(row[0]): int(row[2].removesuffix(".jpg")) for row in _lines(path) if row[0].isdigit()}
    except (IndexError, ValueError) as error:
        raise DatasetError(f"{path} is not the official mapping to CelebA: {error}. {_HOW}") from error
    return numbers
