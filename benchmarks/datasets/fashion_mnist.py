"""Fashion-MNIST (Xiao et al. 2017): 28 x 28 grey images of clothes, 60,000 to train and 10,000 to test."""

import gzip
import hashlib
import os
import shutil
import zlib
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from benchmarks.datasets.base import Dataset
from benchmarks.datasets.errors import DatasetError
from purify.zoo.folders import cache_folder

NAMES = ("fashion-mnist-embedded", "fashion-mnist-train", "fashion-mnist-test")
FASHION_MNIST_CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def load(name: str, _argument: str, root: str | None) -> Dataset:
    """The packaged first 1,000 test images, or the official files.

    They are in the folder that torchvision uses (with FashionMNIST/raw inside), or in one with the four official files,
    plain or gzipped: `root`, else $PURIFY_DATA, else Debian's package dataset-fashion-mnist.
    """
    if name == "fashion-mnist-embedded":
        return _embedded()
    from torchvision.datasets import FashionMNIST  # a slow import that the embedded data do not need

    raw = _find(root)
    if raw.parts[-2:] != ("FashionMNIST", "raw") or not all((raw / file).is_file() for file in _FILES):
        raw = _unpack(raw)
    data = FashionMNIST(str(raw.parents[1]), train=name.endswith("train"))
    return Dataset(data.data[:, None], data.targets.long(), FASHION_MNIST_CLASSES)


def _embedded() -> Dataset:
    file = resources.files("benchmarks") / "datasets" / "packaged" / "fashion_mnist_test_first1000.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"].astype(np.int64))
    return Dataset(images, labels, FASHION_MNIST_CLASSES)


def _find(root: str | None) -> Path:
    """A folder FashionMNIST/raw with the plain files, else any folder with the plain or gzipped files."""
    given = root or os.environ.get("PURIFY_DATA")
    candidates = [Path(given) / "FashionMNIST" / "raw", Path(given)] if given else [DEBIAN_FOLDER]
    for folder in candidates:
        if all((folder / f).is_file() or (folder / f"{f}.gz").is_file() for f in _FILES):
            return folder
    raise DatasetError(
        f"Fashion-MNIST is not at {' or '.join(map(str, candidates))}. Get it with `apt install dataset-fashion-mnist`"
        " on Debian or Ubuntu, or with torchvision.datasets.FashionMNIST(FOLDER, download=True) and data.root=FOLDER"
        " (or the environment variable PURIFY_DATA=FOLDER)."
    )


def _unpack(source: Path) -> Path:
    """Unpacks the files of a folder once into the user's cache, in torchvision's layout; each source folder has a place
    of its own.
    """
    raw = cache_folder() / hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16] / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        target = raw / name
        if target.is_file():
            continue
        packed = source / f"{name}.gz"
        temporary = target.with_name(f"{name}.{os.getpid()}.partial")
        try:
            with (
                gzip.open(packed, "rb") if packed.is_file() else open(source / name, "rb") as stream,
                open(temporary, "wb") as out,
            ):
                shutil.copyfileobj(stream, out)
            os.replace(temporary, target)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DatasetError(f"{packed} is not a whole gzip file: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
    return raw
