"""Sets of image files: decoded to the pixel as torchvision does it, only when asked for, and refused with a reason."""

import importlib.util
import json
import re
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks import datasets
from benchmarks.datasets import imagenet
from benchmarks.datasets.images import Preparation

ROBUSTBENCH = Path(importlib.util.find_spec("robustbench").submodule_search_locations[0])
WNIDS = sorted(json.loads((ROBUSTBENCH / "helper_files" / "imagenet_class_to_id_map.json").read_text()))


def picture(height, width, seed=0, mode="RGB"):
    """Smooth colours with some noise."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / 9 + c) + np.cos(columns / 7 - c) for c in range(3)], axis=2)
    pixels = (60 * waves + 128 + generator.normal(0, 8, waves.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def pixels(image):
    return transforms.PILToTensor()(image)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def png(width, height, depth, colour, rows):
    """A PNG file by its specification: depth and colour type are Pillow's to read but not all its to write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("shape", [(300, 457), (457, 300), (256, 256), (225, 224), (100, 81), (60, 301), (289, 288)])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("Res256Crop224", [transforms.Resize(256), transforms.CenterCrop(224)]),
        (
            "BicubicRes256Crop224",
            [transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)],
        ),
        ("Res224", [transforms.Resize([224, 224])]),
        ("Crop288", [transforms.CenterCrop(288)]),
    ],
)
def test_preparation_is_torchvisions(tmp_path, name, reference, shape):
    image = picture(*shape)
    path = save(tmp_path / "a.png", image)
    assert torch.equal(
        torch.from_numpy(imagenet.PREPROCESSINGS[name].read(path).copy()), pixels(transforms.Compose(reference)(image))
    )


@pytest.fixture(scope="module")
def imagenet_root(tmp_path_factory):
    """All class folders; one image each, and RobustBench's 5,000: links to three pictures, grey and CMYK among them."""
    root = tmp_path_factory.mktemp("imagenet")
    pictures = [
        save(root / "p0.jpg", picture(256, 300, 0)),
        save(root / "p1.jpg", picture(280, 256, 1, "L")),
        save(root / "p2.jpg", picture(260, 270, 2, "CMYK")),
    ]
    for wnid in WNIDS:
        (root / "imagenet" / "val" / wnid).mkdir(parents=True)
    for number, wnid in enumerate(reversed(WNIDS)):
        (root / "imagenet" / "val" / wnid / "first.JPEG").symlink_to(pictures[number % 3])
    for number, name in enumerate((ROBUSTBENCH / "helper_files" / "imagenet_test_image_ids.txt").read_text().split()):
        (root / "imagenet" / "val" / name).symlink_to(pictures[number % 3])
    return root


def test_imagenet_in_torchvisions_order(imagenet_root, monkeypatch):
    monkeypatch.setattr(imagenet, "_IMAGES", 6000)
    folder = imagenet_root / "imagenet" / "val"
    reference = ImageFolder(
        folder, transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    )
    for root in (imagenet_root, imagenet_root / "imagenet", folder):
        data = datasets.load("imagenet-val", str(root))
        assert [
            (str(file), label) for file, label in zip(data.images.files, data.labels.tolist(), strict=True)
        ] == reference.samples
    assert (
        data.images.shape == (6000, 3, 224, 224)
        and len(data.images) == len(data) == 6000
        and data.classes == tuple(WNIDS)
    )
    positions = datasets.subset(len(data), 0)[:7]
    drawn = [reference[position] for position in np.random.RandomState(0).choice(6000, 7, replace=False)]
    assert torch.equal(data.images[positions], torch.stack([image for image, _ in drawn]))
    assert data.labels[positions].tolist() == [label for _, label in drawn]


def test_robustbenchs_images_are_those_of_its_loader(imagenet_root, monkeypatch):
    spec = importlib.util.spec_from_file_location("robustbench_loaders", ROBUSTBENCH / "loaders.py")
    loaders = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "robustbench_loaders", loaders)
    spec.loader.exec_module(loaders)
    prepared = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    reference = loaders.CustomImageFolder(str(imagenet_root / "imagenet" / "val"), prepared)
    data = datasets.load("imagenet-robustbench", str(imagenet_root))
    assert len(data) == 5000 and data.labels.tolist() == reference.targets
    assert list(map(str, data.images.files)) == [path for path, _ in reference.samples]
    assert torch.equal(datasets.as_floats(data.images[:3]), torch.stack([reference[i][0] for i in range(3)]))
    assert datasets.load("imagenet-robustbench:Crop288", str(imagenet_root)).images[4998:].shape == (2, 3, 288, 288)
    with pytest.raises(
        datasets.DatasetError,
        match="unknown preprocessing 'Res256'; known: Res256Crop224, BicubicRes256Crop224, Res224, Crop288",
    ):
        datasets.load("imagenet-robustbench:Res256", str(imagenet_root))


def test_an_incomplete_imagenet_is_explained(imagenet_root, tmp_path):
    with pytest.warns(
        UserWarning, match="has 6,000 images, the official set has 50,000: subsets by seed are not the published ones"
    ):
        datasets.load("imagenet-val", str(imagenet_root))
    with pytest.raises(
        datasets.DatasetError,
        match="none of .*/val, .*/imagenet/val, .* has class folders such as n01440764. Get ILSVRC2012_img_val.tar",
    ):
        datasets.load("imagenet-val", str(tmp_path))
    save(tmp_path / "val" / WNIDS[0] / "a.JPEG", picture(8, 8))
    with pytest.raises(
        datasets.DatasetError,
        match="val has 1 of ImageNet's 1000 class folders, n01443537 is the first that is missing. Get ILSVRC2012",
    ):
        datasets.load("imagenet-val", str(tmp_path))
    with pytest.raises(
        datasets.DatasetError,
        match=(
            "has not all of RobustBench's 5,000 images: 5,000 are missing, the first is"
            " .*n09468604/ILSVRC2012_val_00015253"
        ),
    ):
        datasets.load("imagenet-robustbench", str(tmp_path))
    for wnid in WNIDS[1:]:
        (tmp_path / "val" / wnid).mkdir()
    with pytest.raises(datasets.DatasetError, match="n01443537 has no images .*: put the images of the class there"):
        datasets.load("imagenet-val", str(tmp_path))


@pytest.fixture
def celeba(tmp_path):
    """Six faces: CelebA's last training, first and last validation and first test image, and two more; number in
    CelebA-HQ -> number in CelebA.
    """
    folder = tmp_path / "CelebAMask-HQ"
    original = {0: 182_638, 1: 162_771, 2: 182_637, 3: 162_770, 4: 1, 10: 202_599}
    smiling = {0: 1, 1: -1, 2: 1, 3: -1, 4: 1, 10: 1}
    for number in original:
        save(folder / "CelebA-HQ-img" / f"{number}.jpg", picture(300, 300, number))
    rows = "".join(f"{number}.jpg  1 {value}\n" for number, value in smiling.items())
    (folder / "CelebAMask-HQ-attribute-anno.txt").write_text(f"6\nMale Smiling\n{rows}")
    header = "idx         orig_idx    orig_file\n"
    (folder / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        header + "".join(f"{n:<10} {o - 1:<10} {o:06}.jpg\n" for n, o in original.items())
    )
    return folder


def test_celeba_hq_splits_are_celebas(celeba):
    def numbers(data):
        return [int(file.stem) for file in data.images.files]

    everything = datasets.load("celeba-hq:Smiling", str(celeba.parent))
    assert numbers(everything) == [0, 1, 2, 3, 4, 10] and everything.labels.tolist() == [1, 0, 1, 0, 1, 1]
    assert everything.classes == ("not Smiling", "Smiling") and everything.images.shape == (6, 3, 256, 256)
    with Image.open(celeba / "CelebA-HQ-img" / "4.jpg") as image:
        assert torch.equal(everything.images[[4]][0], pixels(transforms.Resize(256)(image)))
    for split, expected, labels in (("train", [4, 3], [1, 0]), ("val", [1, 2], [0, 1]), ("test", [0, 10], [1, 1])):
        data = datasets.load(f"celeba-hq-{split}:Smiling", str(celeba))
        assert numbers(data) == expected and data.labels.tolist() == labels
    assert datasets.load("celeba-hq:Male", str(celeba)).labels.tolist() == [1] * 6


def test_celeba_hq_that_cannot_be_used(celeba, tmp_path):
    def refused(name, message, root=celeba):
        with pytest.raises(datasets.DatasetError, match=message):
            datasets.load(name, str(root))

    refused("celeba-hq:Smilling", r"unknown attribute 'Smilling' \(did you mean 'Smiling'\?\); known: Male, Smiling")
    refused(
        "celeba-hq:Smiling",
        "has CelebA-HQ-img and CelebAMask-HQ-attribute-anno.txt. Get CelebAMask-HQ.zip by way of https://github.com/",
        tmp_path / "no",
    )
    (celeba / "CelebA-HQ-img" / "10.jpg").unlink()
    refused("celeba-hq-test:Smiling", "lacks 1 of the 2 images of 'celeba-hq-test', the first is 10.jpg. Get")
    assert len(datasets.load("celeba-hq-val:Smiling", str(celeba))) == 2
    annotations, mapping = celeba / "CelebAMask-HQ-attribute-anno.txt", celeba / "CelebA-HQ-to-CelebA-mapping.txt"
    mapping.write_text("".join(mapping.read_text().splitlines(keepends=True)[:3]))
    refused("celeba-hq-val:Smiling", "mapping.txt has no line for image 2")
    mapping.write_text("0 119613\n")
    refused("celeba-hq-val:Smiling", "is not the official mapping to CelebA")
    mapping.unlink()
    refused("celeba-hq-val:Smiling", "mapping.txt cannot be read")
    annotations.write_text(annotations.read_text()[:-3])
    refused("celeba-hq:Smiling", "is not the official list of attributes: 5 whole lines where 6 are announced")
    annotations.write_text(annotations.read_text().replace("-1", "0"))
    refused("celeba-hq:Smiling", "is not the official list of attributes: '0'")


def test_any_folder(tmp_path):
    images = [picture(20, 30, seed) for seed in range(3)]
    for name, image in zip(("cat/b.png", "cat/A.PNG", "ant/deep/c.png"), images, strict=True):
        save(tmp_path / "set" / name, image)
    (tmp_path / "set" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "set" / ".thumbnails").mkdir()
    data = datasets.load("folder:set", str(tmp_path))
    assert data.classes == ("ant", "cat") and data.labels.tolist() == [0, 1, 1] and data.images.shape == (3, 3, 20, 30)
    expected = torch.stack([pixels(images[i]) for i in (2, 1, 0)])
    assert torch.equal(data.images[:], expected)
    resized = datasets.load("folder:set@12", str(tmp_path))
    prepared = transforms.Compose([transforms.Resize(12), transforms.CenterCrop(12), transforms.PILToTensor()])
    assert torch.equal(resized.images[:], torch.stack([prepared(images[i]) for i in (2, 1, 0)]))


def test_a_folder_is_grey_if_all_images_are(tmp_path):
    grey = picture(6, 7, 0, "L")
    save(tmp_path / "a" / "1.png", grey)
    assert torch.equal(datasets.load(f"folder:{tmp_path}").images[:], pixels(grey)[None])
    save(tmp_path / "a" / "2.png", picture(6, 7, 1))
    assert torch.equal(datasets.load(f"folder:{tmp_path}").images[:1], pixels(grey.convert("RGB"))[None])


def test_folders_that_cannot_be_used(tmp_path):
    def refused(name, message):
        with pytest.raises(datasets.DatasetError, match=message):
            datasets.load(name, str(tmp_path))

    refused("folder:none", "none is not a folder; expected one with a subfolder of images for each class")
    (tmp_path / "set").mkdir()
    refused("folder:set", "set has no subfolders")
    save(tmp_path / "set" / "a" / "1.png", picture(6, 7))
    (tmp_path / "set" / "b").mkdir()
    refused("folder:set", r"set/b has no images \(.jpg, .*\): put the images of the class there, or remove the folder")
    save(tmp_path / "set" / "b" / "1.png", picture(9, 8))
    refused("folder:set", r"b/1.png is 9 x 8 pixels, .*a/1.png is 6 x 7: give a size, for instance 'folder:set@6'")
    refused("folder:set@0", "the size must be from 1 to 4096")
    refused("folder:set@224+folder:set@224", "sets of image files cannot be joined")


def test_only_the_images_asked_for_are_decoded(tmp_path):
    """The last file is torn behind its header: it has a size, and no pixels."""
    for number in range(4):
        save(tmp_path / "a" / f"{number}.png", picture(40, 40, number))
    torn = tmp_path / "a" / "3.png"
    torn.write_bytes(torn.read_bytes()[:500])
    images = datasets.load(f"folder:{tmp_path}").images
    expected = torch.stack([pixels(picture(40, 40, number)) for number in range(3)])
    assert images.shape[1:] == (3, 40, 40) and images[:3].dtype == torch.uint8
    for positions in (slice(0, 3), slice(2, None, -2), [2, 0], torch.tensor([1, 1]), [], slice(0, 0)):
        wanted = list(range(4))[positions] if isinstance(positions, slice) else list(positions)
        assert torch.equal(images[positions], expected[torch.tensor(wanted, dtype=torch.int64)])
    with pytest.raises(datasets.DatasetError, match="a/3.png is not a readable image"):
        images[[3]]
    with pytest.raises(IndexError):
        images[[4]]
    for positions in (1, [True, False, True, False], torch.tensor([0.0]), torch.tensor([[0]])):
        with pytest.raises(TypeError, match="take a slice, a one-dimensional int64 tensor or a list of positions, got"):
            images[positions]


def test_images_that_cannot_be_used_are_named(tmp_path):
    file = tmp_path / "a" / "1.png"
    file.parent.mkdir()

    def refused(message):
        with pytest.raises(datasets.DatasetError, match=f"^{re.escape(str(file))} {message}"):
            datasets.load(f"folder:{tmp_path}")

    for mode, suffix in (("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("I;16", "PNG")):
        (Image.new("I;16", (6, 6)) if mode == "I;16" else picture(6, 6, 0, mode)).save(file, suffix)
        refused(f"is an image of mode '{mode}'.*, expected L or RGB with 8 bits a channel: convert it")
    file.write_bytes(png(2, 2, 16, 2, b"".join(b"\0" + bytes(12) for _ in range(2))))
    refused("is an image of mode 'RGB' with 16 bits a channel, expected L or RGB with 8 bits")
    file.write_bytes(png(9000, 9000, 8, 2, b""))
    refused("declares 9000 x 9000 pixels, more than 67,108,864: not decoded")
    file.write_bytes(png(60_000, 60_000, 8, 2, b""))
    refused("is not a readable image: .*decompression bomb")
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n")
    refused("is not a readable image: cannot identify")
    file.write_bytes(png(2_000_000, 1, 8, 0, bytes(2_000_001)))
    with pytest.raises(datasets.DatasetError, match="too long and thin to resize the shorter side to 224"):
        datasets.load(f"folder:{tmp_path}@224").images[:]
    save(file, picture(6, 7))
    with pytest.raises(datasets.DatasetError, match=r"is 6 x 7 pixels, expected 5 x 5 \(height x width\)"):
        Preparation((5, 5)).read(file)
