"""CIFAR's "python" batches, which are pickles, read without running anything that they name.

A batch is a dictionary of lists, strings and one NumPy array, pickled by Python 2. The three names that rebuild an
array are answered by a recorder that only keeps its arguments, every other name is refused, and the array is then made
from the recorded bytes.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datasets.errors import DatasetError
from purify.zoo.pickles import Walk

_ARRAY_NAMES = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
_BYTES_BESIDE_PIXELS = 200  # an image's label and file name, generously


class _Recorder:
    """Stands where NumPy's array, its type or its constructor would be; keeps what it is given and does nothing."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Batch(Walk):
    def find_class(self, module: str, name: str) -> type[_Recorder]:
        if (module, name) not in _ARRAY_NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _Recorder


def read_batch(path: Path, count: int, pixels: int, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """The images (count, pixels) uint8 and labels (count,) int64 of a batch.

    Args:
        path: the file.
        count: images in it.
        pixels: bytes of an image.
        label_key: "labels" or "fine_labels".

    Raises:
        DatasetError: anything but such a batch.
    """
    try:
        if path.stat().st_size > count * (pixels + _BYTES_BESIDE_PIXELS):
            raise pickle.UnpicklingError("it is too large")
        content = _Batch(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        labels = content[label_key]
        _, shape, dtype, fortran, stored = content["data"].state
        if (
            shape != (count, pixels)
            or dtype.arguments[0] != "u1"
            or len(labels) != count
            or {type(label) for label in labels} != {int}
        ):
            raise pickle.UnpicklingError(
                f"expected {count} images of {pixels} bytes and as many whole numbers, got an array of shape {shape}"
            )
        flat = np.frombuffer(stored.encode("latin1") if isinstance(stored, str) else stored, np.uint8)
        return flat.reshape(shape, order="F" if fortran else "C"), np.array(labels, np.int64)
    except Exception as error:  # a damaged or hostile stream can fail anywhere in the unpickler
        raise DatasetError(
            f"{path} is not one of the official batches, and nothing in it was run: {error}. Get it anew, best the"
            " binary archive, which holds no pickles"
        ) from error
