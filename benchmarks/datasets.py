"""Images and labels by name. All data sets come as uint8 images (n, c, h, w) and int64 labels (n,)."""

import gzip
import hashlib
import io
import itertools
import os
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FASHION_MNIST_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class DatasetError(ValueError):
    """A data set that is not there or not usable; the message says how to get it."""


@dataclass(frozen=True)
class Dataset:
    """`images` (n, c, h, w) uint8, `labels` (n,) int64, and the class names in label order."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def as_floats(images: Tensor) -> Tensor:
    """uint8 in [0, 255] -> float32 in [0, 1]."""
    return images.float() / 255


def load(name: str, root: str | None = None) -> Dataset:
    """A data set by name.

    Args:
        name: "fashion-mnist-embedded" (the first 1,000 test images, packaged), "fashion-mnist-train", "fashion-mnist-test", or "npz:FILE", see
            `_npz`; several joined by "+" are one data set.
        root: where the files of data sets that are not packaged lie. For Fashion-MNIST: the folder that torchvision uses (with
            FashionMNIST/raw inside), or one with the four official files. Default: the environment variable PURIFY_DATA, then Debian's
            package dataset-fashion-mnist, for "npz:" the current folder.

    Raises:
        DatasetError: unknown name, or files missing or not usable.
    """
    if "+" in name:
        return _join([load(part, root) for part in name.split("+")], name)
    if name.startswith("npz:"):
        return _npz(Path(root or os.environ.get("PURIFY_DATA") or ".") / name.removeprefix("npz:"))
    match name:
        case "fashion-mnist-embedded":
            return _embedded_fashion_mnist()
        case "fashion-mnist-train" | "fashion-mnist-test":
            return _fashion_mnist(name.endswith("train"), root)
    raise DatasetError(f"unknown data set {name!r}; known: fashion-mnist-embedded, fashion-mnist-train, fashion-mnist-test, npz:FILE")


def _join(parts: list[Dataset], name: str) -> Dataset:
    if len({(part.images.shape[1:], part.classes) for part in parts}) > 1:
        described = ", ".join(f"{tuple(part.images.shape[1:])} in {len(part.classes)} classes" for part in parts)
        raise DatasetError(f"{name!r}: data sets of different shapes or classes cannot be joined: {described}")
    return Dataset(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]), parts[0].classes)


def _npz(path: Path) -> Dataset:
    """A NumPy archive with `labels` (n,) integers and either `images` (n, c, h, w) uint8 or, as `jpeg` uint8 and `offsets` (n + 1,), JPEG or
    PNG files one after the other; `classes`, names in label order, may be there.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            labels = arrays["labels"]
            images = arrays["images"] if "images" in arrays else _decode(arrays["jpeg"], arrays["offsets"])
            names = tuple(map(str, arrays["classes"])) if "classes" in arrays else None
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} is not an archive of images and labels: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != (len(images),) or not len(images):
        raise DatasetError(f"{path}: expected uint8 images (n, c, h, w) and labels (n,), got {images.dtype} {images.shape} and {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or int(labels.min()) < 0:
        raise DatasetError(f"{path}: labels must be integers from 0, got {labels.dtype} from {labels.min()}")
    if names is not None and int(labels.max()) >= len(names):
        raise DatasetError(f"{path}: labels go up to {labels.max()}, but there are {len(names)} classes")
    return Dataset(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), names or tuple(map(str, range(int(labels.max()) + 1))))


def _decode(files: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Image files of one size, grey or RGB, joined in `files` (bytes,) uint8 -> (n, c, h, w) uint8."""
    images = []
    for start, end in itertools.pairwise(offsets):
        with Image.open(io.BytesIO(files[start:end].tobytes())) as image:
            images.append(np.asarray(image if image.mode == "L" else image.convert("RGB")))
    stacked = np.stack(images)
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)) if stacked.ndim == 4 else stacked[:, None]


def _embedded_fashion_mnist() -> Dataset:
    file = resources.files("benchmarks") / "data" / "fashion_mnist_test_first1000.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"].astype(np.int64))
    return Dataset(images, labels, FASHION_MNIST_CLASSES)


def _fashion_mnist(train: bool, root: str | None) -> Dataset:
    from torchvision.datasets import FashionMNIST  # a slow import that the embedded data do not need

    raw = _find_fashion_mnist(root)
    if raw.parts[-2:] != ("FashionMNIST", "raw") or not all((raw / name).is_file() for name in _FASHION_MNIST_FILES):
        raw = _unpack_fashion_mnist(raw)
    data = FashionMNIST(str(raw.parents[1]), train=train)
    return Dataset(data.data[:, None], data.targets.long(), FASHION_MNIST_CLASSES)


_FASHION_MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _find_fashion_mnist(root: str | None) -> Path:
    """A folder FashionMNIST/raw with the plain files, else any folder with the plain or gzipped files."""
    given = root or os.environ.get("PURIFY_DATA")
    candidates = [Path(given) / "FashionMNIST" / "raw", Path(given)] if given else [_DEBIAN_FASHION_MNIST]
    for folder in candidates:
        if all((folder / f).is_file() or (folder / f"{f}.gz").is_file() for f in _FASHION_MNIST_FILES):
            return folder
    raise DatasetError(
        f"Fashion-MNIST is not at {' or '.join(map(str, candidates))}. Get it with `apt install dataset-fashion-mnist` on Debian or Ubuntu, or "
        "with torchvision.datasets.FashionMNIST(FOLDER, download=True) and data.root=FOLDER (or the environment variable PURIFY_DATA=FOLDER)."
    )


def _unpack_fashion_mnist(source: Path) -> Path:
    """Unpacks the files of a folder once into the user's cache, in torchvision's layout; each source folder has a place of its own."""
    raw = cache_folder() / hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16] / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name in _FASHION_MNIST_FILES:
        target = raw / name
        if target.is_file():
            continue
        packed = source / f"{name}.gz"
        temporary = target.with_name(f"{name}.{os.getpid()}.partial")
        try:
            with gzip.open(packed, "rb") if packed.is_file() else open(source / name, "rb") as stream, open(temporary, "wb") as out:
                shutil.copyfileobj(stream, out)
            os.replace(temporary, target)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DatasetError(f"{packed} is not a whole gzip file: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
    return raw


def cache_folder() -> Path:
    """Where files that can be made again are kept: $XDG_CACHE_HOME/purify, by default ~/.cache/purify."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "purify"
