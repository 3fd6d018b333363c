"""Names, archives of the user's own, and fixed subsets."""

import io
import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import datasets

LABELS = np.array([2, 0, 1], dtype=np.uint8)


def noise(channels):
    return np.random.default_rng(0).integers(0, 256, (3, channels, 8, 8), dtype=np.uint8)


def as_png(image):
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_files(path, files, **changes):
    """An archive of image files one after the other."""
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(
        path, **({"jpeg": np.frombuffer(b"".join(files), np.uint8), "offsets": offsets, "labels": LABELS} | changes)
    )


def test_npz_of_arrays(tmp_path):
    images = noise(3)
    np.savez(tmp_path / "a.npz", images=images, labels=LABELS, classes=np.array(["x", "y", "z"]))
    data = datasets.load("npz:a.npz", str(tmp_path))
    assert torch.equal(data.images, torch.from_numpy(images)) and data.labels.tolist() == [2, 0, 1]
    assert data.labels.dtype == torch.int64 and data.classes == ("x", "y", "z")


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_of_image_files(tmp_path, channels):
    """PNG files one after the other: lossless, so that the pixels can be compared."""
    images = noise(channels)
    write_files(tmp_path / "a.npz", [as_png(image) for image in images])
    data = datasets.load("npz:a.npz", str(tmp_path))
    assert torch.equal(data.images, torch.from_numpy(images)) and data.classes == ("0", "1", "2")
    joined = datasets.load("npz:a.npz+npz:a.npz", str(tmp_path))
    assert len(joined) == 6 and torch.equal(joined.images[3:], data.images)


def test_relative_files_lie_in_the_root_then_in_purify_data(tmp_path, monkeypatch):
    for place, value in (("root", 1), ("variable", 2), ("here", 3)):
        (tmp_path / place).mkdir()
        np.savez(tmp_path / place / "a.npz", images=noise(3), labels=LABELS + value)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("PURIFY_DATA", raising=False)
    assert datasets.load("npz:a.npz").labels.tolist() == [5, 3, 4]
    monkeypatch.setenv("PURIFY_DATA", str(tmp_path / "variable"))
    assert datasets.load("npz:a.npz").labels.tolist() == [4, 2, 3]
    assert datasets.load("npz:a.npz", str(tmp_path / "root")).labels.tolist() == [3, 1, 2]


def test_safetensors(tmp_path):
    tensors = {"images": torch.from_numpy(noise(1)), "labels": torch.from_numpy(LABELS)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"classes": json.dumps(["x", "y", "z"])})
    save_file(tensors, tmp_path / "unnamed.safetensors")
    data = datasets.load("safetensors:a.safetensors", str(tmp_path))
    assert (
        torch.equal(data.images, tensors["images"])
        and data.labels.tolist() == [2, 0, 1]
        and data.classes == ("x", "y", "z")
    )
    assert datasets.load(f"safetensors:{tmp_path}/unnamed.safetensors").classes == ("0", "1", "2")


def test_safetensors_that_cannot_be_used(tmp_path):
    images, labels = torch.from_numpy(noise(1)), torch.from_numpy(LABELS)
    whole = tmp_path / "whole.safetensors"
    save_file({"images": images, "labels": labels}, whole)
    (tmp_path / "torn.safetensors").write_bytes(whole.read_bytes()[:-1])
    save_file({"images": images}, tmp_path / "half.safetensors")
    save_file({"images": images / 255, "labels": labels}, tmp_path / "floats.safetensors")
    save_file({"images": images, "labels": labels}, tmp_path / "names.safetensors", metadata={"classes": '"cat"'})
    save_file({"images": images, "labels": labels}, tmp_path / "json.safetensors", metadata={"classes": "cat"})
    for name, message in (
        ("torn", "torn.safetensors is not a safetensors file of images and labels"),
        ("half", "half.safetensors is not a safetensors file of images and labels.*labels"),
        ("json", "json.safetensors is not a safetensors file of images and labels"),
        ("missing", "missing.safetensors is not a safetensors file of images and labels"),
        (
            "floats",
            r"got float32 \(3, 1, 8, 8\) and \(3,\); store floats in \[0, 1\] as \(255 \* x\).round\(\) in uint8",
        ),
        ("names", "'classes' must hold a JSON list of names, got str"),
    ):
        with pytest.raises(datasets.DatasetError, match=message):
            datasets.load(f"safetensors:{name}.safetensors", str(tmp_path))


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
        np.savez(
            tmp_path / f"{name}.npz", images=noise(3)[: len(labels)], labels=labels, classes=np.array(["x", "y", "z"])
        )
        with pytest.raises(datasets.DatasetError, match=message):
            datasets.load(f"npz:{name}.npz", str(tmp_path))
    np.savez(tmp_path / "huge.npz", images=noise(3), labels=LABELS.astype(np.int64) + 2**60)
    with pytest.raises(
        datasets.DatasetError, match="labels go up to 1152921504606846978, but there are at most 1,048,576"
    ):
        datasets.load("npz:huge.npz", str(tmp_path))
    whole = (tmp_path / "colour.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[:200] + bytes(40) + whole[240:])
    with pytest.raises(datasets.DatasetError, match="torn.npz is not an archive"):
        datasets.load("npz:torn.npz", str(tmp_path))
    with pytest.raises(
        datasets.DatasetError, match=r"expected uint8 images \(n, c, h, w\) and labels \(n,\), got float32"
    ):
        datasets.load("npz:floats.npz", str(tmp_path))
    with pytest.raises(datasets.DatasetError, match="different shapes or classes cannot be joined"):
        datasets.load("npz:grey.npz+npz:colour.npz", str(tmp_path))


def test_image_files_in_an_archive_that_cannot_be_used(tmp_path):
    good = [as_png(image) for image in noise(3)]
    small = as_png(noise(3)[0][:, :4])
    for name, files, changes, message in (
        ("sizes", [*good[:2], small], {}, r"sizes.npz: image 2 is \(4, 8, 3\), the first one \(8, 8, 3\)"),
        ("torn", [good[0], good[1][:60], good[2]], {}, "torn.npz: image 1 is not a readable image"),
        ("past", good, {"offsets": np.array([0, 10, 20, 10_000])}, "'offsets' must rise from 0 to at most the"),
        ("back", good, {"offsets": np.array([0, 20, 10, 30])}, "'offsets' must rise from 0"),
        ("none", good, {"offsets": np.array([0])}, "'offsets' must rise from 0"),
    ):
        write_files(tmp_path / f"{name}.npz", files, **changes)
        with pytest.raises(datasets.DatasetError, match=message):
            datasets.load(f"npz:{name}.npz", str(tmp_path))


def memory_peak(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    """A header that is right and 272 MiB of zeros behind it, in a file of about 1 MiB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (272, 1, 1024, 1024)}
    )
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("images.npy", "w") as member,
    ):
        member.write(header.getvalue())
        for _ in range(272):
            member.write(bytes(1 << 20))

    def load():
        with pytest.raises(
            datasets.DatasetError,
            match=r"bomb.npz would unpack to 0.3 GiB, more than the 0.25 GiB .* Write it with numpy.savez",
        ):
            datasets.load("npz:bomb.npz", str(tmp_path))

    assert memory_peak(load) < 1 << 20


def test_images_that_become_too_many_pixels_are_not_decoded(tmp_path):
    """9,000 files of 1,000 x 1,000 grey pixels are 8.4 GiB: refused at the first header."""
    blank = as_png(np.zeros((1, 1000, 1000), np.uint8))
    write_files(tmp_path / "many.npz", [blank] * 9000, labels=np.zeros(9000, np.int64))

    def load():
        with pytest.raises(
            datasets.DatasetError, match="9000 images of 1000 x 1000 pixels are 8.4 GiB, more than 8: use 'folder:PATH'"
        ):
            datasets.load("npz:many.npz", str(tmp_path))

    assert memory_peak(load) < 64 << 20


def test_names():
    assert {"cifar10-test", "imagenet-val", "celeba-hq:ATTRIBUTE", "folder:PATH", "npz:FILE", "safetensors:FILE"} < set(
        datasets.known()
    )
    for name, hint in (
        ("cifar", "cifar10-"),
        ("fashion-mnist", "fashion-mnist-"),
        ("npz", "npz:FILE"),
        ("folder:", "folder:PATH"),
        ("celeba:Smiling", "celeba-hq:"),
    ):
        with pytest.raises(
            datasets.DatasetError,
            match=(
                f"unknown data set '{name}' \\(did you mean '{hint}.*; known: fashion-mnist-embedded,"
                " .*safetensors:FILE$"
            ),
        ):
            datasets.load(name)
    with pytest.raises(datasets.DatasetError, match="unknown data set 'xyz'; known: "):
        datasets.load("xyz")


def test_subset_is_what_the_field_draws():
    """The draws are NumPy's, recorded once with NumPy 2.4; the legacy generator's stream is frozen."""
    for total, seed, size in ((10_000, 0, 512), (50_000, 3, 512), (7, 1, 7)):
        drawn = np.random.RandomState(seed).choice(total, size, replace=False)
        assert datasets.subset(total, seed)[:size].tolist() == drawn.tolist()
    assert datasets.subset(10_000, 0)[:5].tolist() == [9394, 898, 2398, 5906, 2343]
    assert datasets.subset(50_000, 0)[:3].tolist() == [11841, 19602, 45519]
    positions = datasets.subset(100, 5)
    assert positions.dtype == torch.int64 and positions.sort().values.tolist() == list(range(100))
    with pytest.raises(ValueError, match="n_total=0"):
        datasets.subset(0, 0)
    with pytest.raises(ValueError, match="seed=-1: expected 0 to 4294967295"):
        datasets.subset(10, -1)


@pytest.mark.skipif("PURIFY_TEST_DATA" not in os.environ, reason="PURIFY_TEST_DATA is unset: no CIFAR-10 at hand")
def test_cifar10_at_hand():
    root = str(Path(os.environ["PURIFY_TEST_DATA"]) / "cifar10")
    lossless = datasets.load("npz:test_first1000.npz", root)
    assert lossless.images.shape == (1000, 3, 32, 32) and lossless.labels[:4].tolist() == [3, 8, 8, 0]
    jpeg = datasets.load("npz:test_jpeg.npz", root)
    assert jpeg.images.shape == (10_000, 3, 32, 32) and torch.equal(jpeg.labels.bincount(), torch.full((10,), 1000))
