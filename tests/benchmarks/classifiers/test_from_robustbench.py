"""RobustBench's real classes and loader on random weights that lie where it looks, against ours; and files that cannot
be used.
"""

import pytest
import torch
from torch import nn

import benchmarks  # noqa: F401 (makes the imports of robustbench work)
from benchmarks import load_classifier
from benchmarks.classifiers.from_robustbench import THREATS, files, library_address, robustbench_source
from benchmarks.classifiers.request import Request
from purify import CheckpointError

# by RobustBench's calls
pytestmark = pytest.mark.filterwarnings(
    "ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight enum"
)


@pytest.fixture(autouse=True)
def zoo(tmp_path, monkeypatch):
    """The folder of RobustBench's models, with every way to the network closed."""

    def closed(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setenv("PURIFY_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("robustbench.utils.gdown.download", closed)
    monkeypatch.setattr("torch.hub.download_url_to_file", closed)
    return tmp_path / "models" / "robustbench"


def randomised(model):
    """Weights, and statistics of normalisations, that a forgotten tensor would show in."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and ("running" in name or name.endswith("bias")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def zoo_model(dataset, threat, name):
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    torch.manual_seed(0)
    return randomised(model_dicts[BenchmarkDataset(dataset)][ThreatModel(threat)][name]["model"]())


def of_robustbench(zoo, dataset, threat, name):
    from robustbench.utils import load_model

    return load_model(name, model_dir=zoo, dataset=dataset, threat_model=threat)


def save(content, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def images(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def equal(ours, theirs, x):
    states = ours.state_dict(), theirs.state_dict()
    assert not ours.training and not any(parameter.requires_grad for parameter in ours.parameters())
    return (
        states[0].keys() == states[1].keys()
        and all(torch.equal(t, states[1][n]) for n, t in states[0].items())
        and torch.equal(ours(x), theirs(x))
    )


def test_wide_resnet_equals_robustbench(zoo):
    """DiffPure's WRN-28-10, in the layout of a data-parallel training run."""
    state = {f"module.{name}": tensor for name, tensor in zoo_model("cifar10", "Linf", "Standard").state_dict().items()}
    save({"state_dict": state, "epoch": 3}, zoo / "cifar10" / "Linf" / "Standard.pt")
    ours = load_classifier("robustbench:Standard", dataset="cifar10", threat="Linf")
    assert sum(parameter.numel() for parameter in ours.parameters()) == 36_479_194  # WRN-28-10
    assert equal(ours, of_robustbench(zoo, "cifar10", "Linf", "Standard"), images(1, 3, 32, 32))


def test_torchvision_based_imagenet_entry_equals_robustbench(zoo):
    """Saved without the normalisation that the zoo puts in front."""
    model = zoo_model("imagenet", "Linf", "Salman2020Do_R18")
    save(model.model.state_dict(), zoo / "imagenet" / "Linf" / "Salman2020Do_R18.pt")
    arguments = ("imagenet", "Linf", "Salman2020Do_R18")
    assert equal(
        load_classifier("robustbench:Salman2020Do_R18", *arguments[:2]),
        of_robustbench(zoo, *arguments),
        images(1, 3, 64, 64),
    )


@pytest.mark.parametrize("place", ["zoo", "hub"])
def test_timm_based_entry_equals_robustbench(zoo, tmp_path, place):
    """RobustBench takes it from torch.hub's folder; ours may lie in the zoo's."""
    arguments = ("cifar10", "Linf", "Debenedetti2022Light_XCiT-S12")
    random = load_classifier(f"robustbench:{arguments[2]}", *arguments[:2], weights="random")
    hub = tmp_path / "torch" / "hub" / "checkpoints" / library_address(*arguments).rsplit("/", 1)[1]
    file = {"zoo": robustbench_source(*arguments).file_path, "hub": hub}[place]
    save({"model": random[1].state_dict(), "epoch": 1}, file)
    ours = load_classifier(f"robustbench:{arguments[2]}", *arguments[:2])
    assert files(Request(arguments[2], *arguments[:2])) == (file,)
    if place == "zoo":
        save({"model": random[1].state_dict()}, hub)
    assert equal(ours, of_robustbench(zoo, *arguments), images(1, 3, 32, 32))
    assert ours[1].pretrained_cfg["state_dict"] is None  # no second copy of the weights


def test_standard_resnet50_equals_robustbench(zoo, tmp_path):
    """Its weights are torchvision's."""
    random = load_classifier("robustbench:Standard_R50", "imagenet", "Linf", weights="random")
    save(randomised(random).model.state_dict(), tmp_path / "torch" / "hub" / "checkpoints" / "resnet50-0676ba61.pth")
    ours = load_classifier("robustbench:Standard_R50", "imagenet", "Linf")
    assert equal(ours, of_robustbench(zoo, "imagenet", "Linf", "Standard_R50"), images(1, 3, 64, 64))


class Ensemble(nn.Module):
    """As the zoo's: members in `models`."""

    def __init__(self):
        super().__init__()
        self.models = nn.ModuleList(nn.Sequential(nn.Flatten(), nn.Linear(12, 10)) for _ in range(3))

    def forward(self, x):
        return sum(model(x) for model in self.models)


def test_ensembles_have_a_file_a_member(zoo, monkeypatch):
    from robustbench.model_zoo.cifar10 import linf

    monkeypatch.setitem(linf["Chen2020Adversarial"], "model", Ensemble)
    source = robustbench_source("cifar10", "Linf", "Chen2020Adversarial")
    assert len(source.gdrive_ids) == len(source.files) == 3
    assert source.files[1] == zoo / "cifar10" / "Linf" / "Chen2020Adversarial.pt_m1.pt"
    torch.manual_seed(0)
    ensemble = Ensemble()
    for i, file in enumerate(source.files):
        with pytest.raises(CheckpointError, match=f"not at .*Chen2020Adversarial.pt_m{i}.pt.* {source.addresses[i]}"):
            load_classifier("robustbench:Chen2020Adversarial", "cifar10", "Linf")
        save(ensemble.models[i].state_dict(), file)
    ours = load_classifier("robustbench:Chen2020Adversarial", "cifar10", "Linf")
    x = images(2, 3, 2, 2)
    assert torch.equal(ours(x), ensemble(x)) and equal(
        ours, of_robustbench(zoo, "cifar10", "Linf", "Chen2020Adversarial"), x
    )


def test_a_missing_file_is_explained_and_nothing_is_made(tmp_path, zoo):
    with pytest.raises(CheckpointError) as error:
        load_classifier("robustbench:Standard", "cifar10", "L2")
    for part in (
        str(zoo / "cifar10" / "L2" / "Standard.pt"),
        "1t98aEuzeTL8P7Kpd5DIrCoCL21BNZUhC",
        "`purify models fetch robustbench:cifar10/L2/Standard`",
    ):
        assert part in str(error.value)
    with pytest.raises(
        CheckpointError,
        match=(
            "Standard_R50.pt .nor at .*resnet50-0676ba61.pth.*https://download.pytorch.org/models/resnet50-0676ba61.pth"
        ),
    ):
        load_classifier("robustbench:Standard_R50", "imagenet", "corruptions")
    assert not list(tmp_path.iterdir())


def test_every_entry_has_a_source():
    """Google Drive ids, or the address of the library that supplies the weights: never neither, never both."""
    from robustbench.model_zoo import model_dicts

    named = [
        (d.value, t.value, name)
        for d, threats in model_dicts.items()
        for t, entries in threats.items()
        if t.value in THREATS
        for name in entries
    ]
    assert len(named) > 200
    for entry in named:
        source, address = robustbench_source(*entry), library_address(*entry)
        assert bool(source.gdrive_ids) != bool(address), entry
        assert address is None or address.startswith("https://"), entry
        assert all(len(gdrive_id) == 33 for gdrive_id in source.gdrive_ids), entry


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Standrd", "cifar10", "Linf"), "no 'Standrd' for cifar10, Linf; did you mean Standard"),
        (
            ("Standard", "imagenet", "Linf"),
            "did you mean Standard_R50.*; the name exists for cifar10/Linf, cifar10/L2, cifar10/corruptions",
        ),
        (("Standard", None, "Linf"), "dataset=None: .* one of cifar10, cifar100, imagenet"),
        (("Standard", "mnist", "Linf"), "dataset='mnist': .* one of cifar10, cifar100, imagenet"),
        (("Standard", "cifar10", None), "threat=None: .* for cifar10 one of Linf, L2, corruptions"),
        (("Standard", "imagenet", "L2"), "threat='L2': .* for imagenet one of Linf, corruptions"),
        (("Standard", "cifar10", "Linf", "mine.pt"), "weights='mine.pt': classifiers of robustbench"),
    ],
)
def test_unknown_entries(arguments, message):
    name, *rest = arguments
    with pytest.raises(ValueError, match=message):
        load_classifier(f"robustbench:{name}", *rest)


@pytest.fixture
def tiny(zoo, monkeypatch):
    """RobustBench's loader with a small network in place of WRN-28-10; gives the place of its file."""
    from robustbench.model_zoo.cifar10 import linf

    monkeypatch.setitem(linf["Standard"], "model", lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 10)))
    place = zoo / "cifar10" / "Linf" / "Standard.pt"
    save(linf["Standard"]["model"]().state_dict(), place)
    return place


def test_files_that_cannot_be_used(tiny):
    def refused(message):
        with pytest.raises(CheckpointError, match=message) as error:
            load_classifier("robustbench:Standard", "cifar10", "Linf")
        assert str(tiny) in str(error.value)

    assert load_classifier("robustbench:Standard", "cifar10", "Linf")(images(1, 3, 2, 2)).shape == (1, 10)
    content, state = tiny.read_bytes(), torch.load(tiny, weights_only=True)
    tiny.write_bytes(content[: len(content) // 2])
    refused("not a whole checkpoint")
    tiny.write_bytes(b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>")
    refused("is a web page")
    tiny.write_bytes(b"")
    refused("not a whole checkpoint")
    save({"1.weight": state["1.weight"]}, tiny)
    refused("RobustBench cannot load this as Standard: .*1.bias")
    save(state | {"1.bias": state["1.bias"][:4]}, tiny)
    refused("RobustBench cannot load this as Standard: .*1.bias")
    save(state | {"1.bias": torch.full((10,), torch.nan)}, tiny)
    refused("'1.bias' holds NaN")
    save([1, 2], tiny)
    refused("must hold a dictionary")
