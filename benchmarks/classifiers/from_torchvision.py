"""torchvision's ImageNet classifiers: "torchvision:NAME"."""

import re
from pathlib import Path

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from benchmarks.classifiers import files as weights_on_disk
from benchmarks.classifiers.preprocessing import Preprocessed
from benchmarks.classifiers.request import Request, nearest
from purify.zoo.checkpoint import CheckpointError
from purify.zoo.folders import models_folder

OLDEST = "IMAGENET1K_V1"
_ARGUMENTS = {
    # What torchvision's own builders choose for pretrained weights.
    "googlenet": {"transform_input": True, "aux_logits": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "aux_logits": True, "init_weights": False},
}


def load(request: Request) -> nn.Module:
    """The model behind its weights' preset of transforms (`weights.transforms()`)."""
    name = request.name
    version = _version(request)
    paths = () if request.random else files(request)
    model = torchvision.models.get_model(name, weights=None, **_ARGUMENTS.get(name, {}))
    for path in paths:
        weights_on_disk.load_strictly(model, _renamed(weights_on_disk.state_dict(path)), path, f"torchvision's {name}")
    preset = version.transforms()
    return Preprocessed(
        model,
        preset.mean,
        preset.std,
        size=(preset.crop_size[0], preset.crop_size[0]),
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        antialias=bool(preset.antialias),
    )


def files(request: Request) -> tuple[Path, ...]:
    """The user's file, else the downloaded one in our folder or in torch.hub's."""
    version = _version(request)
    if request.weights is not None and request.weights != version.name:
        return (Path(request.weights),)
    place, url = torchvision_source(request.name, version.name)
    what = f"torchvision:{request.name} with weights={version.name!r}"
    fetch = f"purify models fetch torchvision:{request.name}/{version.name}"
    way = f"Get them with `{fetch}`, or download {url} to there, or give weights=FILE. {weights_on_disk.DRY_RUN}"
    return (weights_on_disk.find((place, weights_on_disk.hub_checkpoint(url)), what, way),)


def torchvision_source(name: str, weights: str = OLDEST) -> tuple[Path, str]:
    """Where the weights are looked for first, and their address. Raises CheckpointError or ValueError for what
    torchvision does not have.
    """
    url = _version(Request(name, weights=weights)).url
    return models_folder() / "torchvision" / weights_on_disk.file_name(url), url


def _version(request: Request) -> WeightsEnum:
    """The member of the model's weights enumeration that is asked for; for a file or random weights the default, for
    its transforms.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if request.name not in names:
        raise CheckpointError(
            f"torchvision has no classifier {request.name!r}; did you mean {nearest(request.name, names)}?"
        )
    versions: type[WeightsEnum] = torchvision.models.get_model_weights(request.name)
    # without the alias DEFAULT, which a new release may turn to other weights
    known = {version.name: version for version in versions}
    if request.weights in known:
        return known[request.weights]
    own = request.random or (request.weights is not None and weights_on_disk.is_weight_file(request.weights))
    if not own and request.weights is not None:
        raise ValueError(
            f"weights={request.weights!r}: torchvision:{request.name} has {', '.join(known)}; else give a .pth or"
            " .safetensors file, or 'random'"
        )
    if OLDEST in known:
        return known[OLDEST]
    if not own:
        raise ValueError(f"torchvision:{request.name} has no {OLDEST}; choose weights= from {', '.join(known)}")
    return next(iter(known.values()))


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as they are today: published DenseNet files have "norm.1" where the module has "norm1"."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): tensor for name, tensor in tensors.items()
    }
