"""Classifiers by name, one file a source. Each maps images in [0, 1] to logits and owns its preprocessing."""

import importlib
import os
import warnings
from collections.abc import Callable
from types import ModuleType

from torch import nn

from benchmarks.classifiers import from_module, packaged
from benchmarks.classifiers.checks import check_logits
from benchmarks.classifiers.packaged import (
    ARCHITECTURES,
    KIND,
    SmallResNet,
    build,
    find_classifier,
    packaged_classifiers,
    save_classifier,
)
from benchmarks.classifiers.preprocessing import Preprocessed
from benchmarks.classifiers.request import SOURCES, Request, fixed_seed
from purify import plugins
from purify.zoo.checkpoint import CheckpointError

__all__ = [
    "ARCHITECTURES",
    "KIND",
    "SOURCES",
    "Preprocessed",
    "SmallResNet",
    "build",
    "check_logits",
    "find_classifier",
    "load_classifier",
    "packaged_classifiers",
    "save_classifier",
    "source_module",
]


def load_classifier(
    name: str | os.PathLike[str],
    dataset: str | None = None,
    threat: str | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """A frozen classifier in evaluation mode, float32, on the CPU: images (b, c, h, w) in [0, 1] -> logits (b,
    classes).

    Its preprocessing (normalisation, resize, crop) is part of it. Nothing is downloaded, and no pickle is executed:
    weights that are not there, or carry code, are an error that says where they come from and where to put them, below
    $PURIFY_MODELS or ~/.cache/purify/models.

    Args:
        name: one of
            - a packaged name ("fashion-mnist"), or the path of a file written by `purify train`;
            - "robustbench:NAME", with `dataset` and `threat`: what `robustbench.utils.load_model` gives;
            - "timm:NAME" and "torchvision:NAME": the libraries' models behind their own evaluation transforms;
            - "pyautoattack:resnet18": the CIFAR-10 network in the package pyautoattack;
            - "diffpure:NAME": classifiers of DiffPure's paper that RobustBench does not have, see
              `benchmarks.classifiers.from_diffpure`;
            - "module:path.to.module:factory" or "module:path/to/file.py:factory": your own code, which runs: a function
              without arguments that returns a module from images in [0, 1] to logits; or the name of an entry point of
              the group purify.classifiers, see `purify.plugins`.
        dataset: for "robustbench:": "cifar10", "cifar100" or "imagenet".
        threat: for "robustbench:": "Linf", "L2" or "corruptions".
        weights: for "torchvision:" a version, by default "IMAGENET1K_V1": the oldest, which published evaluations such
            as DiffPure's use; for "timm:" and "torchvision:" a file (.pth or .safetensors); "random" gives random
            weights, always the same ones, for tests and dry runs.

    Raises:
        CheckpointError: unknown name, or weights that are not there or cannot be used.
        ValueError: arguments that do not go together, or a module of your own that cannot be used.
    """
    load, request = _resolve(name, dataset, threat, weights)
    with fixed_seed():
        model = load(request)
    return model.requires_grad_(False).eval().float().cpu()


def _resolve(
    name: str | os.PathLike[str], dataset: str | None, threat: str | None, weights: str | os.PathLike[str] | None
) -> tuple[Callable[[Request], nn.Module], Request]:
    """The loader of the source, and what it is asked for."""
    name = os.fspath(name)
    source, colon, rest = name.partition(":")
    known = bool(colon) and source in SOURCES
    packaged_or_file = name in packaged_classifiers() or os.path.isfile(name)
    entry = not known and not packaged_or_file and plugins.is_plugin("classifiers", name)
    if colon and not known and not entry and len(source) > 1 and not os.path.isfile(name):  # one letter: a drive
        raise CheckpointError(f"no classifier {name!r}: unknown source {source!r}; known: {', '.join(SOURCES)}")
    if not (known and source == "robustbench") and (dataset is not None or threat is not None):
        raise ValueError(f'dataset={dataset!r}, threat={threat!r}: only "robustbench:" names take them, got {name!r}')
    request = Request(rest if known else name, dataset, threat, None if weights is None else os.fspath(weights))
    if entry:
        return lambda asked: from_module.load_named(name, asked), request
    load: Callable[[Request], nn.Module] = source_module(source).load if known else packaged.load
    return load, request


def source_module(source: str) -> ModuleType:
    """The module that answers for one of `SOURCES`."""
    with warnings.catch_warnings():
        # by RobustBench's and timm's imports
        for message in ("pkg_resources is deprecated", "`torch.jit.interface` is deprecated"):
            warnings.filterwarnings("ignore", message=message)
        return importlib.import_module(f"benchmarks.classifiers.from_{source}")
