"""CIFAR from files in the official layouts, written here byte for byte."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import datasets
from benchmarks.datasets import cifar


@pytest.fixture
def small(monkeypatch):
    """Archives of 10 training images a batch of CIFAR-10 and 6 test images."""
    monkeypatch.setattr(cifar, "_COUNTS", {"train": 50, "test": 6})


def images_and_labels(count, classes, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 3072), dtype=np.uint8), generator.integers(
        0, classes, count, dtype=np.uint8
    )


def write_binary(path, images, *label_bytes):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(np.concatenate([*(labels[:, None] for labels in label_bytes), images], axis=1).tobytes())


def python2_batch(images, labels, key, fortran=False):
    """What Python 2's cPickle wrote with protocol 2 for {batch_label, labels, data, filenames}."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def number(value):
        return b"M" + struct.pack("<H", value)

    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\t(K\x01"
    array += number(images.shape[0]) + number(images.shape[1]) + b"\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b"
    array += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" + (b"\x88" if fortran else b"\x89")
    array += b"T" + struct.pack("<I", images.size) + images.tobytes("F" if fortran else "C") + b"tb"
    names = b"](" + b"".join(text(b"tabby_s_%06d.png" % i) for i in range(len(labels))) + b"e"
    items = [
        (b"batch_label", text(b"testing batch 1 of 1")),
        (key, b"](" + b"".join(map(number, labels.tolist())) + b"e"),
        (b"data", array),
    ]
    return b"\x80\x02}q\x01(" + b"".join(text(name) + value for name, value in [*items, (b"filenames", names)]) + b"u."


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_the_python_batches_of_this_file_are_what_python_reads():
    images, labels = images_and_labels(6, 10)
    for fortran in (False, True):
        content = pickle.loads(python2_batch(images, labels, b"labels", fortran), encoding="latin1")
        assert (
            np.array_equal(content["data"], images)
            and content["labels"] == labels.tolist()
            and content["filenames"][5] == "tabby_s_000005.png"
        )


def test_cifar10_in_the_official_order(tmp_path, small):
    batches = [images_and_labels(10, 10, seed) for seed in range(5)]
    binary, python = tmp_path / "b" / "cifar-10-batches-bin", tmp_path / "p" / "cifar-10-batches-py"
    for folder in (binary, python):
        folder.mkdir(parents=True)
    for number, (images, labels) in enumerate(batches, 1):
        write_binary(binary / f"data_batch_{number}.bin", images, labels)
        (python / f"data_batch_{number}").write_bytes(python2_batch(images, labels, b"labels", fortran=number == 2))
    expected = np.concatenate([images for images, _ in batches]).reshape(50, 3, 32, 32)
    for root in (binary.parent, binary, python.parent, python):
        data = datasets.load("cifar10-train", str(root))
        assert (
            torch.equal(data.images, torch.from_numpy(expected))
            and data.labels.tolist() == np.concatenate([labels for _, labels in batches]).tolist()
        )
        assert data.classes[3] == "cat" and len(data.classes) == 10
    with pytest.raises(
        datasets.DatasetError, match="cifar-10-batches-bin has no test_batch.bin: unpack CIFAR-10's archive anew"
    ):
        datasets.load("cifar10-test", str(binary.parent))


def test_cifar100_has_the_fine_classes(tmp_path, small, monkeypatch):
    images, fine = images_and_labels(6, 100)
    coarse = (fine // 5).astype(np.uint8)
    write_binary(tmp_path / "cifar-100-binary" / "test.bin", images, coarse, fine)
    (tmp_path / "data" / "cifar-100-python").mkdir(parents=True)
    (tmp_path / "data" / "cifar-100-python" / "test").write_bytes(python2_batch(images, fine, b"fine_labels"))
    monkeypatch.setenv("PURIFY_DATA", str(tmp_path))
    from_binary = datasets.load("cifar100-test")
    monkeypatch.delenv("PURIFY_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "purify").symlink_to(tmp_path)
    from_python = datasets.load("cifar100-test")
    for data in (from_binary, from_python):
        assert (
            torch.equal(data.images, torch.from_numpy(images.reshape(6, 3, 32, 32)))
            and data.labels.tolist() == fine.tolist()
        )
        assert len(set(data.classes)) == 100 and (data.classes[0], data.classes[47], data.classes[99]) == (
            "apple",
            "maple_tree",
            "worm",
        )


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_hostile_batch_is_refused_and_runs_nothing(tmp_path, small):
    """Beside pickles that call something: a memo index for which the C unpickler would take 64 GiB, and arrays that
    promise more than they hold.
    """
    folder, trap = tmp_path / "cifar-10-batches-py", str(tmp_path / "executed")
    folder.mkdir()
    images, labels = images_and_labels(6, 10)
    whole = python2_batch(images, labels, b"labels")
    for content, message in (
        (pickle.dumps({"data": Evil(trap), "labels": []}, 2), "it names .*mkdir"),
        (pickle.dumps({"data": Evil(trap), "labels": []}, 4), "it names .*mkdir"),
        (whole.replace(b"cnumpy\ndtype\n", b"cnumpy\nload\n"), "it names numpy.load"),
        (whole.replace(b"cnumpy\nndarray\n", b"cbuiltins\neval\n"), "it names builtins.eval"),
        (b"\x80\x02]r\xff\xff\xff\xff.", "list indices must be"),
        (b"\x80\x02\x82\x01.", "it names extension 1"),
        (whole[:5000], "nothing in it was run"),
        (whole.replace(b"U\x02u1", b"U\x02O8"), "got an array of shape"),
        (
            whole.replace(b"K\x00tb\x89T" + struct.pack("<I", images.size), b"K\x00tb\x89T" + struct.pack("<I", 100)),
            "nothing in it was run",
        ),
        (python2_batch(images[:5], labels[:5], b"labels"), r"got an array of shape \(5, 3072\)"),
        (python2_batch(images, labels[:5], b"labels"), "expected 6 images of 3072 bytes and as many whole numbers"),
        (python2_batch(images, labels, b"other"), "not one of the official batches.*'labels'"),
        (whole + bytes(10_000), "it is too large"),
        (b"", "nothing in it was run"),
    ):
        (folder / "test_batch").write_bytes(content)
        with pytest.raises(datasets.DatasetError, match=message):
            datasets.load("cifar10-test", str(tmp_path))
    assert not Path(trap).exists()
    (folder / "test_batch").write_bytes(python2_batch(images, labels + 10, b"labels"))
    with pytest.raises(datasets.DatasetError, match="expected 6 labels from 0 to 9; this is not the official file"):
        datasets.load("cifar10-test", str(tmp_path))


def test_binary_files_that_are_not_the_official_ones(tmp_path, small):
    images, labels = images_and_labels(6, 10)
    file = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    write_binary(file, images, labels + 10)
    with pytest.raises(datasets.DatasetError, match="expected 6 labels from 0 to 9"):
        datasets.load("cifar10-test", str(tmp_path))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        datasets.DatasetError,
        match=(
            "has 18437 bytes, the official file has 18438: get https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
        ),
    ):
        datasets.load("cifar10-test", str(tmp_path))
    with pytest.raises(
        datasets.DatasetError,
        match=(
            r"'cifar100-train' is not in .*, which has neither cifar-100-binary nor cifar-100-python. Get it with"
            r" `purify models fetch cifar100-binary`"
        ),
    ):
        datasets.load("cifar100-train", str(tmp_path))


@pytest.mark.skipif("PURIFY_TEST_DATA" not in os.environ, reason="PURIFY_TEST_DATA is unset: no CIFAR-10 at hand")
def test_the_first_thousand_test_images(tmp_path):
    """The same from the extract and from an official test_batch.bin that begins with it."""
    at_hand = datasets.load("cifar10-test-1000", os.environ["PURIFY_TEST_DATA"])
    assert (
        at_hand.images.shape == (1000, 3, 32, 32)
        and at_hand.images.dtype == torch.uint8
        and at_hand.labels.dtype == torch.int64
    )
    assert [at_hand.classes[label] for label in at_hand.labels[:4]] == ["cat", "ship", "ship", "airplane"]
    assert torch.equal(
        datasets.load("cifar10-test-1000", os.path.join(os.environ["PURIFY_TEST_DATA"], "cifar10")).images,
        at_hand.images,
    )

    images = np.zeros((10_000, 3072), np.uint8)
    images[:1000] = at_hand.images.numpy().reshape(1000, -1)
    labels = np.zeros(10_000, np.uint8)
    labels[:1000] = at_hand.labels.numpy()
    write_binary(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", images, labels)
    official = datasets.load("cifar10-test-1000", str(tmp_path))
    assert torch.equal(official.images, at_hand.images) and torch.equal(official.labels, at_hand.labels)
    assert datasets.load("cifar10-test", str(tmp_path)).images.shape == (10_000, 3, 32, 32)


def test_an_extract_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "test_first1000.npz", images=np.zeros((2, 3, 32, 32), np.uint8), labels=np.zeros(2, np.uint8))
    with pytest.raises(
        datasets.DatasetError,
        match=r"test_first1000.npz: expected 1000 images \(3, 32, 32\) with labels from 0 to 9, got \(2, 3, 32, 32\)",
    ):
        datasets.load("cifar10-test-1000", str(tmp_path))
