"""Classifiers that DiffPure (Nie et al., ICML 2022, arXiv 2205.07460) was evaluated with and RobustBench does not have.

"diffpure:wrn-70-16-dropout" is the WRN-70-16 of the published CIFAR-10 runs (the authors' scripts name it);
"diffpure:wrn-70-16" another one of their code, with DeepMind's architecture; "diffpure:resnet-50" that of the StAdv and
L2 1.0 experiments; "diffpure:celebahq-ATTRIBUTE", for instance celebahq-Smiling, an attribute of CelebA. The paper's
WRN-28-10 is "robustbench:Standard", its ImageNet networks are "torchvision:resnet50", "torchvision:wide_resnet50_2" and
"timm:deit_small_patch16_224.fb_in1k".

Files lie in the layout of the authors' folder `pretrained`, below `diffpure` in our folder of models.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robustbench.model_zoo.architectures.dm_wide_resnet import CIFAR10_MEAN, CIFAR10_STD, DMWideResNet, Swish
from robustbench.model_zoo.architectures.resnet import ResNet50
from robustbench.model_zoo.architectures.wide_resnet import WideResNet
from torch import nn

from benchmarks.classifiers import files as weights_on_disk
from benchmarks.classifiers.attribute_network import AttributeNetwork
from benchmarks.classifiers.preprocessing import Preprocessed
from benchmarks.classifiers.request import Request, nearest
from purify.zoo.checkpoint import CheckpointError
from purify.zoo.folders import models_folder

_CELEBAHQ = "celebahq-"
_CELEBAHQ_ARCHIVE = (
    "http://latent-composition.csail.mit.edu/other_projects/gan_ensembling/zips/pretrained_classifiers.zip"
)


@dataclass(frozen=True)
class Published:
    """A classifier and where its file is.

    Attributes:
        file: below `models_folder()/"diffpure"`.
        address: the page or archive that it comes from.
        network: builds the network.
        mean: per channel, of the normalisation in front of it; None where it has its own.
        std: as `mean`.
        prefixes: what the names in the file may begin with.
    """

    file: str
    address: str
    network: Callable[[], nn.Module]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    prefixes: tuple[str, ...] = ("module.",)


CIFAR10: dict[str, Published] = {
    "wrn-70-16-dropout": Published(
        "cifar10/wrn-70-16-dropout/weights.pt",
        "https://drive.google.com/drive/folders/1istqcnPNXJ-TQFdxRqNJuInzOtlYOG1b",
        lambda: WideResNet(depth=70, widen_factor=16, dropRate=0.3),
        CIFAR10_MEAN,
        CIFAR10_STD,
    ),
    "wrn-70-16": Published(
        "cifar10/wresnet-76-10/weights-best.pt",
        "https://drive.google.com/drive/folders/1OeuFx2r26xeHncs8bGuqgY6ns_N77Avi",
        lambda: DMWideResNet(num_classes=10, depth=70, width=16, activation_fn=Swish),
        prefixes=("module.0.", "module."),
    ),
    "resnet-50": Published(
        "cifar10/resnet-50/weights.pt",
        "https://drive.google.com/drive/folders/1SEGilIEAnx9OC1JVhmOynreCF3oog7Fi",
        ResNet50,
        CIFAR10_MEAN,
        CIFAR10_STD,
    ),
}


def load(request: Request) -> nn.Module:
    """A published classifier; the CIFAR-10 networks take 32x32 images, the attribute networks 256x256 or a multiple."""
    published = _published(request.name)
    request.only_default_weights("diffpure", "Put a file of your own at the place where the authors' is looked for.")
    paths = () if request.random else files(request)
    model = published.network()
    for path in paths:
        weights_on_disk.load_strictly(
            model, weights_on_disk.state_dict(path, published.prefixes), path, f"diffpure:{request.name}"
        )
    return (
        model if published.mean is None or published.std is None else Preprocessed(model, published.mean, published.std)
    )


def files(request: Request) -> tuple[Path, ...]:
    """The file in our folder of models."""
    path, address = diffpure_source(request.name)
    way = f"It comes from {address}. {weights_on_disk.DRY_RUN}"
    return (weights_on_disk.find((path,), f"diffpure:{request.name}", way),)


def diffpure_source(name: str) -> tuple[Path, str]:
    """Where the weights are looked for, and the page or archive that has them. Raises CheckpointError for an unknown
    name.
    """
    published = _published(name)
    return models_folder() / "diffpure" / published.file, published.address


def _published(name: str) -> Published:
    attribute = name.removeprefix(_CELEBAHQ)
    if name in CIFAR10:
        return CIFAR10[name]
    if name.startswith(_CELEBAHQ) and re.fullmatch(r"\w+", attribute):
        return Published(
            f"celebahq/{attribute}/net_best.pth", _CELEBAHQ_ARCHIVE, AttributeNetwork, (0.5,) * 3, (0.5,) * 3
        )
    known = (*CIFAR10, f"{_CELEBAHQ}Smiling", f"{_CELEBAHQ}Eyeglasses")
    raise CheckpointError(f"DiffPure's code has no classifier {name!r}; did you mean {nearest(name, known)}?")
