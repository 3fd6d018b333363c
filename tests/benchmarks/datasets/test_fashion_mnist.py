"""Fashion-MNIST of the official files and of those in the package."""

import pytest
import torch
from torchvision.datasets.mnist import read_image_file

from benchmarks import datasets


def test_fashion_mnist_from_a_folder_of_gzipped_files(tmp_path, monkeypatch):
    """The official idx files, gzipped as they are distributed, made here from the embedded images."""
    import gzip

    data = datasets.load("fashion-mnist-embedded")
    source = tmp_path / "source"
    source.mkdir()
    for prefix in ("train", "t10k"):
        header = (2051).to_bytes(4, "big") + (1000).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
        (source / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + data.images.numpy().tobytes()))
        header = (2049).to_bytes(4, "big") + (1000).to_bytes(4, "big")
        (source / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(header + data.labels.byte().numpy().tobytes())
        )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loaded = datasets.load("fashion-mnist-train", str(source))
    assert torch.equal(loaded.images, data.images) and torch.equal(loaded.labels, data.labels)
    raw = next((tmp_path / "cache").rglob("train-images-idx3-ubyte"))
    assert torch.equal(read_image_file(str(raw)), data.images[:, 0])

    torchvision_root = raw.parents[2]
    assert torch.equal(datasets.load("fashion-mnist-test", str(torchvision_root)).images, data.images)


def test_embedded_images_are_the_official_ones():
    """Against Debian's copy of the official files, where it is installed."""
    if not datasets.fashion_mnist.DEBIAN_FOLDER.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    official, embedded = datasets.load("fashion-mnist-test"), datasets.load("fashion-mnist-embedded")
    assert torch.equal(official.images[:1000], embedded.images) and torch.equal(official.labels[:1000], embedded.labels)
