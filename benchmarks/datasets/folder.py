"""Any folder of images with one subfolder a class."""

import re
from pathlib import Path

import torch

from benchmarks.datasets.base import Dataset, user_path
from benchmarks.datasets.errors import DatasetError
from benchmarks.datasets.images import ImageFiles, Preparation, class_files, opened

NAMES = ("folder:PATH",)
_MAX_SIZE = 4096


def load(_name: str, path: str, root: str | None) -> Dataset:
    """Images uint8 (n, c, h, w), decoded when they are asked for; the sorted names of the subfolders are the classes,
    hidden ones left out.

    All images must have one size, or "PATH@SIZE" resizes the shorter side to SIZE (bilinear, antialiased) and cuts SIZE
    x SIZE out of the centre. One channel if all images are grey, else three. PATH is relative to `root`, else to
    $PURIFY_DATA, else to the current folder.

    Raises:
        DatasetError: a missing folder, no subfolders, a class without images, or images that cannot be used or differ
            in size.
    """
    size = None
    if match := re.fullmatch(r"(.+)@(\d{1,6})", path):
        path, size = match[1], int(match[2])
        if not 1 <= size <= _MAX_SIZE:
            raise DatasetError(f"'folder:{path}@{size}': the size must be from 1 to {_MAX_SIZE}")
    folder = user_path(path, root)
    if not folder.is_dir():
        raise DatasetError(
            f"'folder:{path}': {folder} is not a folder; expected one with a subfolder of images for each class"
        )
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DatasetError(f"'folder:{path}': {folder} has no subfolders; expected one with the images of each class")
    by_class = [class_files(folder / name) for name in classes]
    files = [file for files in by_class for file in files]
    labels = torch.tensor([label for label, files in enumerate(by_class) for _ in files])
    shape, channels = _survey(path, files, one_size=size is None)
    preparation = (
        Preparation(shape, channels) if size is None else Preparation((size, size), channels, resize=size, crop=True)
    )
    return Dataset(ImageFiles(files, preparation), labels, tuple(classes))


def _survey(path: str, files: list[Path], one_size: bool) -> tuple[tuple[int, int], int]:
    """(height, width) of the first image, and the channels of all, from the headers of the files."""
    shape, channels = (0, 0), 1
    for file in files:
        with opened(file, str(file)) as image:
            found = (image.height, image.width)
            channels = channels if image.mode == "L" else 3
        shape = found if file is files[0] else shape
        if one_size and found != shape:
            raise DatasetError(
                f"{file} is {found[0]} x {found[1]} pixels, {files[0]} is {shape[0]} x {shape[1]}: give a size, for"
                f" instance 'folder:{path}@{min(shape)}', to resize and crop them"
            )
    return shape, channels
