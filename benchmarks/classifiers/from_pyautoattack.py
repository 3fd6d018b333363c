"""The CIFAR-10 classifier that comes with the package pyautoattack: "pyautoattack:resnet18"."""

from importlib import resources
from pathlib import Path

from pyautoattack.examples.resnet import ResNet18
from torch import nn

from benchmarks.classifiers import files as weights_on_disk
from benchmarks.classifiers.request import Request
from purify.zoo.checkpoint import CheckpointError


def load(request: Request) -> nn.Module:
    """An undefended ResNet-18 for 32x32 images in [0, 1], which are not normalised: 93.7 % on the first 1,000 CIFAR-10
    test images.
    """
    (path,) = files(request)
    request.only_default_weights("pyautoattack", "The package has one file.")
    model: nn.Module = ResNet18()
    if not request.random:
        weights_on_disk.load_strictly(model, weights_on_disk.state_dict(path), path, "pyautoattack's ResNet-18")
    return model


def files(request: Request) -> tuple[Path, ...]:
    """The file in the installed package."""
    if request.name != "resnet18":
        raise CheckpointError(f"pyautoattack has no classifier {request.name!r}; known: resnet18")
    path = Path(str(resources.files("pyautoattack") / "examples" / "model_test.pt"))
    return (
        weights_on_disk.find((path,), "pyautoattack:resnet18", "They belong to the package: reinstall pyautoattack."),
    )
