"""Classifiers of DiffPure's code: architectures, the layouts of their files, and where they are looked for."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from benchmarks import load_classifier
from benchmarks.classifiers import from_diffpure
from benchmarks.classifiers.attribute_network import AttributeNetwork
from benchmarks.classifiers.from_diffpure import CIFAR10, DMWideResNet, ResNet50, Swish, WideResNet, diffpure_source
from purify import CheckpointError

MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None], torch.tensor([0.2471, 0.2435, 0.2616])[:, None, None]


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("PURIFY_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def save(content, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def randomised(model):
    """With statistics of normalisations that differ from those of a new network."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if "running" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval().requires_grad_(False)


def images(*shape, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(
    ("name", "small", "prefix", "wrap"),
    [
        (
            "wrn-70-16-dropout",
            lambda: WideResNet(depth=10, widen_factor=1, dropRate=0.3),
            "module.",
            lambda state: state,
        ),
        (
            "wrn-70-16",
            lambda: DMWideResNet(num_classes=10, depth=10, width=1, activation_fn=Swish),
            "module.0.",
            lambda s: {"model_state_dict": s, "epoch": 1},
        ),
    ],
)
def test_wide_networks_at_a_reduced_width(monkeypatch, models, name, small, prefix, wrap):
    """Names in the files begin as data-parallel training left them; the dropout is off."""
    monkeypatch.setitem(CIFAR10, name, dataclasses.replace(CIFAR10[name], network=small))
    model = randomised(small())
    save(
        wrap({prefix + key: tensor for key, tensor in model.state_dict().items()}),
        models / "diffpure" / CIFAR10[name].file,
    )
    x = images(2, 3, 32, 32)
    expected = model((x - MEAN) / STD) if name == "wrn-70-16-dropout" else model(x)
    assert torch.equal(load_classifier(f"diffpure:{name}")(x), expected)


def test_resnet50(models):
    torch.manual_seed(0)
    model = randomised(ResNet50())
    save(
        {f"module.{key}": tensor for key, tensor in model.state_dict().items()},
        models / "diffpure" / "cifar10" / "resnet-50" / "weights.pt",
    )
    x = images(1, 3, 32, 32)
    assert torch.equal(load_classifier("diffpure:resnet-50")(x), model((x - MEAN) / STD))


@pytest.mark.parametrize(
    ("name", "parameters"), [("wrn-70-16", 266_796_506), ("wrn-70-16-dropout", 266_796_506), ("resnet-50", 23_520_842)]
)
def test_full_sizes(name, parameters):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in CIFAR10[name].network().parameters()) == parameters


def attribute_shapes():
    """Names and shapes of the published files for 256 pixels."""
    channels = {256: (64, 128), 128: (128, 256), 64: (256, 512), 32: (512, 512), 16: (512, 512), 8: (512, 512)}
    shapes = {"lod_in": (), "fromrgb_lod0.conv.conv.weight": (64, 3, 1, 1), "fromrgb_lod0.conv.wscale.b": (64,)}
    for size, (wide, narrow) in channels.items():
        shapes |= {f"{size}x{size}.conv0.conv.weight": (wide, wide, 3, 3), f"{size}x{size}.conv0.wscale.b": (wide,)}
        shapes |= {f"{size}x{size}.conv1.conv.weight": (narrow, wide, 3, 3), f"{size}x{size}.conv1.wscale.b": (narrow,)}
    shapes |= {"4x4.conv.conv.weight": (512, 512, 3, 3), "4x4.conv.wscale.b": (512,)}
    shapes |= {"4x4.dense0.linear.weight": (512, 8192), "4x4.dense0.wscale.b": (512,)}
    return shapes | {"4x4.dense1.linear.weight": (1, 512), "4x4.dense1.wscale.b": (1,)}


def test_attribute_network_has_the_published_names():
    with torch.device("meta"):
        assert {
            name: tuple(tensor.shape) for name, tensor in AttributeNetwork().state_dict().items()
        } == attribute_shapes()


def test_attribute_network_computes_the_published_function():
    """The 16-pixel network written out: weights scaled before use, blur and shrink before the activation."""
    torch.manual_seed(0)
    network = AttributeNetwork(16, base=64, widest=8).double()
    state = {name: tensor.normal_() for name, tensor in network.state_dict().items()}

    def layer(h, name, gain=2**0.5):
        weight = state[f"{name}.{'linear' if 'dense' in name else 'conv'}.weight"]
        scaled = weight * gain / math.sqrt(weight[0].numel())
        function = (
            F.linear if "dense" in name else lambda *arguments: F.conv2d(*arguments, padding=weight.shape[-1] // 2)
        )
        return function(h, scaled, state[f"{name}.wscale.b"])

    x = images(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    h = F.leaky_relu(layer(x, "fromrgb_lod0.conv"), 0.2)
    for size in ("16x16", "8x8"):
        h = F.leaky_relu(layer(h, f"{size}.conv0"), 0.2)
        h = F.leaky_relu(F.avg_pool2d(layer(h, f"{size}.conv1"), 2), 0.2)
    h = F.leaky_relu(layer(h, "4x4.conv"), 0.2).flatten(1)
    logit = layer(F.leaky_relu(layer(h, "4x4.dense0"), 0.2), "4x4.dense1", gain=1.0)
    assert torch.allclose(network(x), torch.cat([logit, -logit], 1), rtol=1e-12)
    enlarged = x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.allclose(network(enlarged), network(x), rtol=1e-12)
    with pytest.raises(ValueError, match=r"square images of 16 pixels a side or a multiple, got \(24, 24\)"):
        network(torch.zeros(1, 3, 24, 24))


def test_attribute_classifier(monkeypatch, models):
    """As saved by its training, with the optimiser beside it; images in [0, 1] become [-1, 1]."""
    monkeypatch.setattr(from_diffpure, "AttributeNetwork", lambda: AttributeNetwork(16, base=64, widest=8))
    torch.manual_seed(0)
    network = AttributeNetwork(16, base=64, widest=8)
    content = {
        "state_dict": network.state_dict(),
        "optimizer": torch.optim.Adam(network.parameters()).state_dict(),
        "epoch": 7,
        "valacc": 0.93,
    }
    save(content, models / "diffpure" / "celebahq" / "Smiling" / "net_best.pth")
    x = images(2, 3, 16, 16)
    assert torch.equal(load_classifier("diffpure:celebahq-Smiling")(x), network(2 * x - 1))


def test_where_files_are_looked_for(models):
    place, address = diffpure_source("wrn-70-16-dropout")
    assert place == models / "diffpure" / "cifar10" / "wrn-70-16-dropout" / "weights.pt"
    for name in (*CIFAR10, "celebahq-Eyeglasses"):
        place, address = diffpure_source(name)
        with pytest.raises(CheckpointError) as error:
            load_classifier(f"diffpure:{name}")
        assert str(place) in str(error.value) and address in str(error.value)


@pytest.mark.parametrize("name", ["wrn-28-10", "celebahq-", "celebahq-../../x"])
def test_unknown_names(name):
    with pytest.raises(CheckpointError, match="DiffPure's code has no classifier"):
        load_classifier(f"diffpure:{name}")
