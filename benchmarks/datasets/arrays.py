"""Images and labels of the user's own in one file: a NumPy archive or safetensors. Nothing in them is executed."""

import io
import itertools
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from benchmarks.datasets.base import Dataset, user_path
from benchmarks.datasets.errors import DatasetError
from benchmarks.datasets.images import opened

NAMES = ("npz:FILE", "safetensors:FILE")
_MAX_BYTES = 8 << 30
_MAX_RATIO = 100  # photographs do not compress by more than a few times
_FREE_BYTES = 256 << 20
_MAX_CLASSES = 1 << 20
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)


def load(kind: str, file: str, root: str | None) -> Dataset:
    """`read_npz` or `read_safetensors`, of a path relative to `root`, else to $PURIFY_DATA, else to the current
    folder.
    """
    path = user_path(file, root)
    return read_npz(path) if kind == "npz" else read_safetensors(path)


def read_npz(path: Path) -> Dataset:
    """A NumPy archive with `labels` (n,) integers and either `images` (n, c, h, w) uint8 or, as `jpeg` uint8 and
    `offsets` (n + 1,), JPEG or PNG files one after the other; `classes`, names in label order, may be there.

    Raises:
        DatasetError: not such an archive, or one that would unpack to more than 8 GiB or, above 256 MiB, to more than
            100 times its size.
    """
    try:
        _check_unpacked_size(path)
        with np.load(path, allow_pickle=False) as arrays:
            labels = arrays["labels"]
            images = arrays["images"] if "images" in arrays else _decode(arrays["jpeg"], arrays["offsets"], path)
            names = tuple(map(str, arrays["classes"])) if "classes" in arrays else None
        tensors = torch.from_numpy(images), torch.from_numpy(labels)
    except DatasetError:
        raise
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        EOFError,
        MemoryError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DatasetError(f"{path} is not an archive of images and labels: {error}") from error
    return _checked(path, *tensors, names)


def read_safetensors(path: Path) -> Dataset:
    """A safetensors file with `images` (n, c, h, w) uint8 and `labels` (n,) integers; class names in label order may be
    there as a JSON list of strings under the metadata key "classes".

    Raises:
        DatasetError: not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
            names = json.loads((file.metadata() or {}).get("classes", "null"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path} is not a safetensors file of images and labels: {error}") from error
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DatasetError(
            f"{path}: the metadata key 'classes' must hold a JSON list of names, got {type(names).__name__}"
        )
    return _checked(path, images, labels, names if names is None else tuple(names))


def _check_unpacked_size(path: Path) -> None:
    """Before anything is unpacked; zipfile itself stops at the declared sizes."""
    with zipfile.ZipFile(path) as archive:
        declared = sum(member.file_size for member in archive.infolist())
    allowed = min(_MAX_BYTES, max(_FREE_BYTES, _MAX_RATIO * path.stat().st_size))
    if declared > allowed:
        raise DatasetError(
            f"{path} would unpack to {declared / 2**30:.1f} GiB, more than the {allowed / 2**30:.2f} GiB that are"
            " allowed for a file of its size: not unpacked. Write it with numpy.savez (uncompressed), or give large"
            " sets as image files with 'folder:PATH', which are decoded as needed"
        )


def _checked(path: Path, images: Tensor, labels: Tensor, names: tuple[str, ...] | None) -> Dataset:
    if images.dtype != torch.uint8 or images.ndim != 4 or labels.shape != (len(images),) or not images.numel():
        got = f"{_name(images)} {tuple(images.shape)} and {tuple(labels.shape)}"
        hint = (
            "; store floats in [0, 1] as (255 * x).round() in uint8, so that everyone gets the same images"
            if images.is_floating_point()
            else ""
        )
        raise DatasetError(f"{path}: expected uint8 images (n, c, h, w) and labels (n,), got {got}{hint}")
    if labels.dtype not in _INTEGERS:
        raise DatasetError(f"{path}: labels must be integers from 0, got {_name(labels)}")
    low, high = min(labels.tolist()), max(labels.tolist())
    if low < 0:
        raise DatasetError(f"{path}: labels must be integers from 0, got {_name(labels)} from {low}")
    if high >= (len(names) if names is not None else _MAX_CLASSES):
        raise DatasetError(
            f"{path}: labels go up to {high}, but there are"
            f" {f'{len(names)} classes' if names is not None else f'at most {_MAX_CLASSES:,}'}"
        )
    return Dataset(images, labels.long(), names if names is not None else tuple(map(str, range(high + 1))))


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _decode(files: np.ndarray, offsets: np.ndarray, path: Path) -> np.ndarray:
    """Image files of one size, all grey or RGB, joined in `files` (bytes,) uint8 -> (n, c, h, w) uint8."""
    if (
        offsets.ndim != 1
        or len(offsets) < 2
        or int(offsets[0]) < 0
        or int(offsets[-1]) > files.size
        or (np.diff(offsets.astype(np.int64)) <= 0).any()
    ):
        raise DatasetError(
            f"{path}: 'offsets' must rise from 0 to at most the {files.size} bytes of 'jpeg', one more of them than"
            " images"
        )
    images: np.ndarray = np.empty((0,))
    for position, (start, end) in enumerate(itertools.pairwise(offsets.tolist())):
        name = f"{path}: image {position}"
        with opened(io.BytesIO(files[start:end].tobytes()), name) as image:
            shape = (image.height, image.width, 1 if image.mode == "L" else 3)
            if position == 0:
                images = _room(path, (len(offsets) - 1, *shape))
            if shape != tuple(images.shape[1:]):
                raise DatasetError(
                    f"{name} is {shape}, the first one {images.shape[1:]} (height, width, channels): all must be alike"
                )
            images[position] = np.asarray(image).reshape(shape)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _room(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape, dtype=object))
    if size > _MAX_BYTES:
        raise DatasetError(
            f"{path}: {shape[0]} images of {shape[1]} x {shape[2]} pixels are {size / 2**30:.1f} GiB, more than 8: use"
            " 'folder:PATH'"
        )
    return np.empty(shape, np.uint8)
