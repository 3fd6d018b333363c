"""The validation images of ImageNet's 2012 challenge (Russakovsky et al. 2015), from class folders named by WordNet
identifiers.
"""

import importlib.util
import json
import warnings
from pathlib import Path

import torch

from benchmarks.datasets.base import Dataset, data_folder
from benchmarks.datasets.errors import DatasetError
from benchmarks.datasets.images import ImageFiles, Preparation, class_files

NAMES = ("imagenet-val", "imagenet-robustbench", "imagenet-robustbench:PREPROCESSING")
_IMAGES = 50_000
_MODES = ("L", "RGB", "CMYK")  # as torchvision converts them; photographs of this set are not all RGB
_FIELD = "Res256Crop224"
PREPROCESSINGS = {
    "Res256Crop224": Preparation((224, 224), resize=256, crop=True, modes=_MODES),
    "BicubicRes256Crop224": Preparation((224, 224), resize=256, crop=True, bicubic=True, modes=_MODES),
    "Res224": Preparation((224, 224), resize=(224, 224), modes=_MODES),
    "Crop288": Preparation((288, 288), crop=True, modes=_MODES),
}
"""RobustBench's names. All are antialiased, on PIL images."""
_HOW = (
    "Get ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from https://image-net.org (free registration), sort"
    " the images into one folder a class with torchvision.datasets.ImageNet(FOLDER, split='val'), and set"
    " data.root=FOLDER (or the environment variable PURIFY_DATA=FOLDER)"
)


def load(name: str, preprocessing: str, root: str | None) -> Dataset:
    """Images uint8 (n, 3, h, w), decoded when they are asked for; labels are positions among the 1,000 sorted
    identifiers, the classes.

    "imagenet-val" has all images in the order of torchvision's ImageFolder, shorter side resized to 256, centre cropped
    to 224. "imagenet-robustbench" has RobustBench's 5,000 in the order of its list, prepared as its `PREPROCESSINGS`
    names say ("Res256Crop224" where none is given). The class folders lie in val, imagenet/val or directly in `root`,
    else in $PURIFY_DATA, else in `data` of the cache folder.

    Raises:
        DatasetError: missing folders or images, an unknown preprocessing.
    """
    if (preprocessing or _FIELD) not in PREPROCESSINGS:
        raise DatasetError(
            f"'{name}:{preprocessing}': unknown preprocessing {preprocessing!r}; known: {', '.join(PREPROCESSINGS)}"
        )
    classes = tuple(sorted(json.loads(_robustbench_file("imagenet_class_to_id_map.json"))))
    folder = _find(name, data_folder(root), classes)
    files, labels = _validation(folder, classes) if name == "imagenet-val" else _robustbench(folder, classes)
    return Dataset(ImageFiles(files, PREPROCESSINGS[preprocessing or _FIELD]), torch.tensor(labels), classes)


def _robustbench_file(name: str) -> str:
    """A file that comes with RobustBench, whose import alone takes seconds."""
    found = importlib.util.find_spec("robustbench")
    if found is None or not found.submodule_search_locations:
        raise DatasetError(
            "ImageNet's class identifiers and RobustBench's list come with the package robustbench, which is not"
            " installed"
        )
    return (Path(found.submodule_search_locations[0]) / "helper_files" / name).read_text()


def _find(name: str, root: Path, classes: tuple[str, ...]) -> Path:
    candidates = (root / "val", root / "imagenet" / "val", root)
    for folder in candidates:
        there = [wnid for wnid in classes if (folder / wnid).is_dir()]
        if there and len(there) < len(classes) and name == "imagenet-val":
            first = next(wnid for wnid in classes if wnid not in there)
            raise DatasetError(
                f"{folder} has {len(there)} of ImageNet's 1000 class folders, {first} is the first that is missing."
                f" {_HOW}"
            )
        if there:
            return folder
    raise DatasetError(
        f"{name!r}: none of {', '.join(map(str, candidates))} has class folders such as {classes[0]}. {_HOW}"
    )


def _validation(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    by_class = [class_files(folder / wnid) for wnid in classes]
    labels = [label for label, files in enumerate(by_class) for _ in files]
    if len(labels) != _IMAGES:
        warnings.warn(
            f"{folder} has {len(labels):,} images, the official set has {_IMAGES:,}: subsets by seed are not the"
            " published ones",
            stacklevel=4,
        )
    return [file for files in by_class for file in files], labels


def _robustbench(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    names = _robustbench_file("imagenet_test_image_ids.txt").split()
    files = [folder / name for name in names]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DatasetError(
            f"{folder} has not all of RobustBench's {len(files):,} images: {len(missing):,} are missing, the first is"
            f" {missing[0]}. {_HOW}"
        )
    position = {wnid: label for label, wnid in enumerate(classes)}
    return files, [position[name.split("/")[0]] for name in names]
