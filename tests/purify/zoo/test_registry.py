import json

import golden
import pytest
import torch
from safetensors.torch import save_file

from purify import CheckpointError, load_score_model
from purify.zoo import registry
from purify.zoo.registry import RegistryError

GOOD = """
entries:
  one:
    kind: score
    files: [{name: a.pt, sources: ["https://example.org/a.pt"], size: 3}]
    page: https://example.org
    licence: MIT
    architecture: ddpm
    config: {}
"""


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PURIFY_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PURIFY_DATA", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cifar10-ddpmpp-deep-vp", 106_632_579),
        ("cifar10-ddpmpp-vp", 61_804_419),
        ("cifar10-ddpmpp-subvp", 61_804_419),
        ("cifar10-ddpmpp-deep-subvp", 106_632_579),
        ("cifar10-ncsnpp-ve", 62_758_915),
        ("celebahq256-ddpm", 113_673_219),
        ("imagenet256-adm-uncond", 552_814_086),
        ("cifar10-edm-uncond-vp", 55_733_891),
    ],
)
def test_networks_have_the_recorded_size(name, parameters):
    network = registry.network_of(registry.find(name))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("path", sorted(golden.FOLDER.glob("*.keys.json")), ids=lambda path: path.name)
def test_recorded_names_and_shapes_are_those_of_an_entry(path):
    recorded = json.loads(path.read_text())
    networks = [
        registry.network_of(entry)
        for entry in registry.entries().values()
        if entry.architecture == recorded["architecture"]
    ]
    assert recorded["state_dict"] in [
        {name: list(tensor.shape) for name, tensor in network.state_dict().items()} for network in networks
    ]


@pytest.mark.parametrize("name", [entry.name for entry in registry.entries().values() if entry.config is not None])
def test_every_configuration_is_one_that_checkpoints_load_into(name, tmp_path):
    """Only the weights are missing: the network is built, and its process understood."""
    save_file({"x": torch.zeros(1)}, tmp_path / "empty.safetensors")
    entry = registry.find(name)
    with torch.device("meta"), pytest.raises(CheckpointError, match="do not fit the architecture"):
        load_score_model(tmp_path / "empty.safetensors", entry.architecture, entry.config)


def test_facts_of_the_literature():
    adm = registry.find("imagenet256-adm-uncond").files[0]
    assert (adm.size, adm.sha256) == (2_211_383_297, "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1")
    cifar = registry.find("cifar10-binary").files[0]
    assert (cifar.size, cifar.md5) == (170_052_171, "c32a1d4ab5d03f1284b67883e8d87530")
    for name, sde, centered in (
        ("cifar10-ddpmpp-deep-vp", "vpsde", True),
        ("cifar10-ddpmpp-subvp", "subvpsde", True),
        ("cifar10-ncsnpp-ve", "vesde", False),
    ):
        config = registry.find(name).config
        assert (config["training"]["sde"], config["data"]["centered"]) == (sde, centered)
    assert registry.find("imagenet64-adm-cond").config["noise_schedule"] == "cosine"
    assert all(
        entry.export and "save_file" in entry.note
        for entry in registry.entries().values()
        if entry.files[0].name.endswith(".pkl")
    )


def test_paths(folders):
    assert (
        registry.path_of(registry.find("imagenet256-adm-uncond"))
        == folders / "models" / "imagenet256-adm-uncond" / "256x256_diffusion_uncond.pt"
    )
    assert registry.path_of(registry.find("cifar10-edm-uncond-vp")).name == "edm-cifar10-32x32-uncond-vp.safetensors"
    assert (
        registry.path_of(registry.find("cifar10-binary"))
        == folders / "cache" / "purify" / "data" / "cifar-10-batches-bin"
    )
    several = registry.find("cifar10-ddpm-diffusers")
    assert registry.path_of(several) == folders / "models" / "cifar10-ddpm-diffusers"
    assert not registry.is_here(several)
    registry.path_of(several).mkdir(parents=True)
    (registry.path_of(several) / "config.json").touch()
    assert not registry.is_here(several)
    for _, path in registry.downloads_of(several):
        path.touch()
    assert registry.is_here(several)


def test_data_goes_where_data_sets_are_looked_for(folders, monkeypatch):
    monkeypatch.setenv("PURIFY_DATA", str(folders / "mine"))
    assert registry.path_of(registry.find("cifar100-binary")) == folders / "mine" / "cifar-100-binary"


def test_what_to_do_is_said_in_full(folders):
    def text(name):
        return registry.how_to_get(registry.find(name))

    assert "`purify models fetch imagenet256-adm-uncond`, or put 256x256_diffusion_uncond.pt" in text(
        "imagenet256-adm-uncond"
    )
    assert f"into {folders / 'models' / 'imagenet256-adm-uncond'} by hand" in text("imagenet256-adm-uncond")
    by_hand = text("cifar10-ddpmpp-vp")
    assert (
        by_hand.startswith("download checkpoint_8.pth from https://drive.google.com/drive/folders/")
        and "cifar10-ddpmpp-vp/checkpoint_8.pth" in by_hand
    )
    assert "then export the weights to" in text("cifar10-edm-uncond-vp")


def test_unknown_names_are_told_the_nearest():
    with pytest.raises(
        RegistryError,
        match="no model or data set 'cifar10-ddpmpp-deep' in the registry; did you mean 'cifar10-ddpmpp-deep-vp'",
    ):
        registry.find("cifar10-ddpmpp-deep")
    with pytest.raises(RegistryError, match="did you mean 'imagenet256-adm-uncond'"):
        registry.find("imagenet256-adm-uncnd")
    with pytest.raises(RegistryError, match="known: cifar10-ddpmpp-deep-vp, "):
        registry.find("zzz")


def test_a_good_entry_is_read():
    entry = registry.parse(GOOD)["one"]
    assert (entry.name, entry.size, entry.files[0].sources) == ("one", 3, ("https://example.org/a.pt",))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: score", "kind: scores", "'one': kind='scores' is not one of score, data"),
        ("name: a.pt", "name: ../a.pt", "name must be a plain file name, got '../a.pt'"),
        ("https://example.org/a.pt", "http://example.org/a.pt", "neither an https address nor gdrive:ID"),
        ("https://example.org/a.pt", "gdrive:short", "neither an https address nor gdrive:ID"),
        ("size: 3", "size: -3", "size must be a positive number of bytes, got -3"),
        ("size: 3", "sha256: abc", "sha256 must be 64 hexadecimal digits"),
        ("size: 3", "sizes: 3", "unexpected keyword argument 'sizes'"),
        ("architecture: ddpm", "architecture: dpm", "architecture='dpm' is not one of"),
        ("architecture: ddpm", "", "a score with architecture=None"),
        ("config: {}", "", "config must be a mapping"),
        ("config: {}", "config: {}\n    export: /etc/x", "export must be a plain name"),
        ("licence: MIT", "", "missing 1 required positional argument: 'licence'"),
        ("one:", "One Two:", "a name is made of"),
        ("entries:", "entry:", "must hold a mapping with `entries`"),
        ("entries:", "entries: [", "is not YAML"),
    ],
)
def test_bad_entries_are_named(old, new, message):
    with pytest.raises(RegistryError, match=message):
        registry.parse(GOOD.replace(old, new))
