"""timm's and torchvision's models behind their own evaluation transforms, and where their weights are looked for."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from benchmarks import load_classifier
from benchmarks.classifiers import from_timm, from_torchvision
from benchmarks.classifiers.request import Request
from purify import CheckpointError


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Every cache empty, every way to the network closed."""

    def closed(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setenv("PURIFY_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", closed)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", closed)
    return tmp_path


def image(height, width):
    return torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(0))


def bare(model):
    """A library's model in evaluation mode, with statistics of normalisations that differ from those of a new one."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if "running" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return bare(torchvision.models.resnet18())


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return bare(timm.create_model("test_vit"))


@pytest.mark.parametrize("size", [(250, 300), (100, 90), (224, 224)])
def test_torchvision_model_and_its_transforms(tmp_path, resnet18, size):
    torch.save(resnet18.state_dict(), tmp_path / "weights.pth")
    model, x = load_classifier("torchvision:resnet18", weights=tmp_path / "weights.pth"), image(*size)
    transforms = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    if size == (224, 224):  # resized to 256 and cropped by the preset; only normalised here
        expected = resnet18(torchvision.transforms.Normalize(transforms.mean, transforms.std)(x))
    else:
        expected = resnet18(transforms(x))
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("size", [(170, 200), (100, 90)])
@pytest.mark.parametrize("name", ["test_vit", "test_vit.r160_in1k"])
def test_timm_model_and_its_transforms(tmp_path, vit, name, size):
    save_file(vit.state_dict(), tmp_path / "weights.safetensors")
    model, x = load_classifier(f"timm:{name}", weights=tmp_path / "weights.safetensors"), image(*size)
    transforms = timm.data.create_transform(**timm.data.resolve_model_data_config(vit))
    assert torch.equal(model(x), vit(transforms(x[0])[None]))
    assert model.model.pretrained_cfg["state_dict"] is None and not model.training


def test_squashed_images(monkeypatch):
    """crop_mode="squash" changes proportions."""
    model = load_classifier("timm:tf_efficientnetv2_b3.in21k_ft_in1k", weights="random")
    data = timm.data.resolve_model_data_config(model.model)
    assert data["crop_mode"] == "squash" and model.resize == (266, 266) and model.size == (240, 240)
    seen = []
    monkeypatch.setattr(model.model, "forward", lambda x: seen.append(x) or x.mean((2, 3)))
    model(image(50, 70))
    assert torch.equal(seen[0], timm.data.create_transform(**data)(image(50, 70)[0])[None])


def test_published_weights_are_found_where_the_libraries_keep_them(tmp_path, resnet18, vit):
    """torch.hub's folder and that of huggingface_hub; ours comes first."""
    hub = tmp_path / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    hub.parent.mkdir(parents=True)
    torch.save(resnet18.state_dict(), hub)
    for weights in (None, "IMAGENET1K_V1"):
        assert from_torchvision.files(Request("resnet18", weights=weights)) == (hub,)
    assert torch.equal(
        load_classifier("torchvision:resnet18")(image(224, 224)),
        load_classifier("torchvision:resnet18", weights=hub)(image(224, 224)),
    )
    snapshot = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("0" * 40)
    file = snapshot / "snapshots" / ("0" * 40) / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(vit.state_dict(), file)
    assert from_timm.files(Request("test_vit")) == (file,)
    x = image(160, 160)
    assert torch.equal(load_classifier("timm:test_vit")(x), load_classifier("timm:test_vit", weights=file)(x))
    for source, (place, _), name, content in (
        (from_torchvision, from_torchvision.torchvision_source("resnet18"), "resnet18", hub),
        (from_timm, from_timm.timm_source("test_vit"), "test_vit", file),
    ):
        place.parent.mkdir(parents=True)
        place.write_bytes(content.read_bytes())
        assert source.files(Request(name)) == (place,)


def test_sources():
    """Facts: the addresses of published weights, and the places where they are looked for."""
    place, url = from_torchvision.torchvision_source("resnet50")
    assert url == "https://download.pytorch.org/models/resnet50-0676ba61.pth" and place.parts[-2:] == (
        "torchvision",
        "resnet50-0676ba61.pth",
    )
    assert from_torchvision.torchvision_source("wide_resnet50_2")[0].name == "wide_resnet50_2-95faca4d.pth"
    assert from_torchvision.torchvision_source("resnet50", "IMAGENET1K_V2")[0].name == "resnet50-11ad3fa6.pth"
    place, url = from_timm.timm_source("deit_small_patch16_224")
    assert url == "https://huggingface.co/timm/deit_small_patch16_224.fb_in1k/resolve/main/model.safetensors"
    assert place.parts[-2:] == ("timm", "deit_small_patch16_224.fb_in1k.safetensors")


@pytest.mark.parametrize("nesting", ["state_dict", "model"])
def test_files_of_training_runs(tmp_path, resnet18, vit, nesting):
    for name, model, size in (("torchvision:resnet18", resnet18, 224), ("timm:test_vit", vit, 160)):
        plain, nested = tmp_path / "plain.pth", tmp_path / "nested.pth"
        torch.save(model.state_dict(), plain)
        torch.save(
            {nesting: {f"module.{key}": tensor for key, tensor in model.state_dict().items()}, "epoch": 5}, nested
        )
        x = image(size, size)
        assert torch.equal(load_classifier(name, weights=nested)(x), load_classifier(name, weights=plain)(x))


def test_densenet_s_published_names(tmp_path):
    """The files have "norm.1" where the module has "norm1"."""
    torch.manual_seed(0)
    model = bare(torchvision.models.densenet121())
    state = {key: tensor for key, tensor in model.state_dict().items()}
    old = {
        key.replace("norm1.", "norm.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2."): state[key]
        for key in state
    }
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "densenet.pth")
    loaded = load_classifier("torchvision:densenet121", weights=tmp_path / "densenet.pth").model.state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)


def test_googlenet_transforms_its_input_as_with_published_weights():
    assert load_classifier("torchvision:googlenet", weights="random").model.transform_input


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("torchvision:resnet5", None, "torchvision has no classifier 'resnet5'; did you mean resnet50"),
        ("torchvision:fcn_resnet50", None, "torchvision has no classifier 'fcn_resnet50'"),
        ("torchvision:resnet50", "IMAGENET1K_V3", "resnet50 has IMAGENET1K_V1, IMAGENET1K_V2; else give a .pth"),
        ("torchvision:resnet50", "DEFAULT", "resnet50 has IMAGENET1K_V1, IMAGENET1K_V2; else give a .pth"),
        (
            "torchvision:vit_h_14",
            None,
            "no IMAGENET1K_V1; choose weights= from IMAGENET1K_SWAG_E2E_V1, IMAGENET1K_SWAG_LINEAR_V1",
        ),
        (
            "torchvision:resnet50",
            None,
            (
                "not at .*resnet50-0676ba61.pth .nor at .*download"
                " https://download.pytorch.org/models/resnet50-0676ba61.pth"
            ),
        ),
        ("torchvision:resnet18", "absent.pth", "no weight file at absent.pth"),
        ("timm:resnet5", None, "timm has no model 'resnet5'; did you mean resnet50"),
        ("timm:resnet50.x", None, "timm's resnet50 has no weights 'x'; known: .*resnet50.a1_in1k"),
        ("timm:resnet50", "IMAGENET1K_V1", "timm's versions are part of the name"),
        (
            "timm:resnet50",
            None,
            (
                "not at"
                " .*resnet50.a1_in1k.safetensors.*https://huggingface.co/timm/resnet50.a1_in1k/resolve/main/model.safetensors"
            ),
        ),
        ("timm:vit_small_patch14_dinov2", None, "has no classification head"),
        ("timm:test_vit", "absent.safetensors", "no weight file at absent.safetensors"),
    ],
)
def test_what_is_refused(name, weights, message):
    with pytest.raises(ValueError, match=message):
        load_classifier(name, weights=weights)


def test_weights_of_another_network(tmp_path, resnet18, vit):
    file = tmp_path / "weights.pth"
    torch.save(vit.state_dict(), file)
    with pytest.raises(
        CheckpointError,
        match="do not fit torchvision's resnet18; 122 missing: conv1.weight.*; 80 unexpected: cls_token",
    ):
        load_classifier("torchvision:resnet18", weights=file)
    torch.save({**resnet18.state_dict(), "fc.bias": torch.zeros(10)}, file)
    with pytest.raises(CheckpointError, match=r"1 of another shape: fc.bias \(10,\), expected \(1000,\)"):
        load_classifier("torchvision:resnet18", weights=file)
    with pytest.raises(CheckpointError, match="do not fit timm's test_vit: .*") as error:
        load_classifier("timm:test_vit", weights=file)
    assert len(str(error.value)) < 800
    torch.save({**resnet18.state_dict(), "fc.bias": torch.full((1000,), torch.inf)}, file)
    with pytest.raises(CheckpointError, match="'fc.bias' holds NaN or infinity"):
        load_classifier("torchvision:resnet18", weights=file)
    torch.save({"state_dict": {"epoch": 3}}, file)
    with pytest.raises(CheckpointError, match="is not a state dict.*'epoch' is a int"):
        load_classifier("torchvision:resnet18", weights=file)
