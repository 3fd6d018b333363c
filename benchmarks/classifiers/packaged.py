"""Classifiers of this package: those that come with it, and files written by `purify train`."""

import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.classifiers.request import SOURCES, Request
from purify.zoo import checkpoint
from purify.zoo.checkpoint import CheckpointError

KIND = "classifier"
_SUFFIX = ".classifier.safetensors"


class _Block(nn.Module):
    """He et al.'s basic residual block (2016, arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(h)))


class SmallResNet(nn.Module):
    """A residual network for small images.

    Args:
        channels: of the images.
        classes: number of logits.
        widths: one residual block each; all but the first halve the resolution.
        mean, std: per-channel normalisation of images in [0, 1], part of the model.
    """

    def __init__(
        self, channels: int, classes: int, widths: tuple[int, ...] = (32, 64, 128), mean: float = 0.5, std: float = 0.25
    ):
        super().__init__()
        self.mean, self.std = mean, std
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        inputs = [widths[0], *widths[:-1]]
        self.blocks = nn.Sequential(
            *(_Block(i, o, 1 if n == 0 else 2) for n, (i, o) in enumerate(zip(inputs, widths, strict=True)))
        )
        self.head = nn.Linear(widths[-1], classes)
        self.to(memory_format=torch.channels_last)  # the faster layout on CPUs

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, channels, h, w), float, in [0, 1] -> logits (b, classes)."""
        h = self.blocks(self.stem((x - self.mean) / self.std))
        logits: Tensor = self.head(h.mean((2, 3)))
        return logits

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}"


ARCHITECTURES: dict[str, type[nn.Module]] = {"small_resnet": SmallResNet}


def packaged_classifiers() -> dict[str, Path]:
    """Name -> file of the classifiers that come with the package."""
    folder = Path(str(resources.files("benchmarks") / "classifiers" / "weights"))
    return {file.name.removesuffix(_SUFFIX): file for file in sorted(folder.glob("*" + _SUFFIX))}


def find_classifier(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a packaged name, or the path itself. Raises CheckpointError for what is neither."""
    try:
        return checkpoint.find(name_or_path, packaged_classifiers(), "classifier")
    except CheckpointError as error:
        if Path(name_or_path).suffix == ".safetensors":
            raise
        raise CheckpointError(
            f"{error}, or SOURCE:NAME (as in timm:resnet50) with a source of {', '.join(SOURCES)}"
        ) from None


def load(request: Request) -> nn.Module:
    """A packaged name ("fashion-mnist"), or the path of a file written by `purify train`. Raises CheckpointError for
    what cannot be used.
    """
    request.only_default_weights("this package", "Give the path of a weight file as the name.")
    path = find_classifier(request.name)
    description, tensors = checkpoint.read(path, KIND)

    def make() -> nn.Module:
        return build(description["architecture"], description["config"])

    try:
        return make() if request.random else checkpoint.build_with(make, tensors, path)
    except CheckpointError:
        raise
    except checkpoint.UNUSABLE as error:
        raise CheckpointError(f"{path}: the description in the file's metadata cannot be used: {error!r}") from error


def build(architecture: str, config: dict[str, Any]) -> nn.Module:
    """A freshly initialised classifier. Raises ValueError for an unknown architecture or arguments that it does not
    take.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown classifier architecture {architecture!r}; known: {', '.join(sorted(ARCHITECTURES))}")
    try:
        return ARCHITECTURES[architecture](**config)
    except TypeError as error:
        raise ValueError(f"architecture {architecture!r} does not take this configuration: {error}") from error


def save_classifier(
    path: str | os.PathLike[str],
    model: nn.Module,
    architecture: str,
    config: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Writes a classifier built by `build(architecture, config)`, in half precision."""
    description = {"kind": KIND, "architecture": architecture, "config": config, "provenance": provenance}
    checkpoint.save(path, model, description)
