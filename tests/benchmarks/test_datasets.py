import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import datasets

LABELS = np.array([2, 0, 1], dtype=np.uint8)


def noise(channels):
    return np.random.default_rng(0).integers(0, 256, (3, channels, 8, 8), dtype=np.uint8)


def test_npz_of_arrays(tmp_path):
    images = noise(3)
    np.savez(tmp_path / "a.npz", images=images, labels=LABELS, classes=np.array(["x", "y", "z"]))
    data = datasets.load("npz:a.npz", str(tmp_path))
    assert torch.equal(data.images, torch.from_numpy(images)) and data.labels.tolist() == [2, 0, 1]
    assert data.labels.dtype == torch.int64 and data.classes == ("x", "y", "z")


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_of_image_files(tmp_path, channels):
    """PNG files one after the other: lossless, so that the pixels can be compared."""
    images, files, offsets = noise(channels), b"", [0]
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG")
        files += buffer.getvalue()
        offsets.append(len(files))
    np.savez(tmp_path / "a.npz", jpeg=np.frombuffer(files, np.uint8), offsets=np.array(offsets), labels=LABELS)
    data = datasets.load("npz:a.npz", str(tmp_path))
    assert torch.equal(data.images, torch.from_numpy(images)) and data.classes == ("0", "1", "2")
    joined = datasets.load("npz:a.npz+npz:a.npz", str(tmp_path))
    assert len(joined) == 6 and torch.equal(joined.images[3:], data.images)


def test_what_cannot_be_used_is_explained(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "half.npz", images=noise(3))
    np.savez(tmp_path / "floats.npz", images=noise(3).astype(np.float32), labels=LABELS)
    np.savez(tmp_path / "grey.npz", images=noise(1), labels=LABELS)
    np.savez(tmp_path / "colour.npz", images=noise(3), labels=LABELS)
    np.savez(tmp_path / "objects.npz", images=np.array([{}], dtype=object), labels=LABELS)
    for name in ("text", "half", "missing", "objects"):
        with pytest.raises(datasets.DatasetError, match=f"{name}.npz is not an archive of images and labels"):
            datasets.load(f"npz:{name}.npz", str(tmp_path))
    for name, labels, message in (
        ("real", LABELS.astype(np.float32), "labels must be integers from 0, got float32"),
        ("negative", LABELS.astype(np.int64) - 1, "labels must be integers from 0, got int64 from -1"),
        ("many", LABELS + 3, "labels go up to 5, but there are 3 classes"),
        ("empty", LABELS[:0], r"and labels \(n,\), got uint8 \(0, 3, 8, 8\) and \(0,\)"),
    ):
        np.savez(tmp_path / f"{name}.npz", images=noise(3)[: len(labels)], labels=labels, classes=np.array(["x", "y", "z"]))
        with pytest.raises(datasets.DatasetError, match=message):
            datasets.load(f"npz:{name}.npz", str(tmp_path))
    whole = (tmp_path / "colour.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[:200] + bytes(40) + whole[240:])
    with pytest.raises(datasets.DatasetError, match="torn.npz is not an archive"):
        datasets.load("npz:torn.npz", str(tmp_path))
    with pytest.raises(datasets.DatasetError, match=r"expected uint8 images \(n, c, h, w\) and labels \(n,\), got float32"):
        datasets.load("npz:floats.npz", str(tmp_path))
    with pytest.raises(datasets.DatasetError, match="different shapes or classes cannot be joined"):
        datasets.load("npz:grey.npz+npz:colour.npz", str(tmp_path))
    with pytest.raises(datasets.DatasetError, match="unknown data set 'cifar'"):
        datasets.load("cifar")


@pytest.mark.skipif("PURIFY_TEST_DATA" not in os.environ, reason="PURIFY_TEST_DATA is unset: no CIFAR-10 at hand")
def test_cifar10_at_hand():
    root = str(Path(os.environ["PURIFY_TEST_DATA"]) / "cifar10")
    lossless = datasets.load("npz:test_first1000.npz", root)
    assert lossless.images.shape == (1000, 3, 32, 32) and lossless.labels[:4].tolist() == [3, 8, 8, 0]
    jpeg = datasets.load("npz:test_jpeg.npz", root)
    assert jpeg.images.shape == (10_000, 3, 32, 32) and torch.equal(jpeg.labels.bincount(), torch.full((10,), 1000))
