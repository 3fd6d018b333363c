"""What is told of files without loading them."""

import json
import os

import golden
import torch
from safetensors.torch import save_file

import purify
from purify import load_score_model
from purify.zoo import registry
from purify.zoo.guard import check_archive, read_tensors
from purify.zoo.inspect_file import TensorInfo, fitting_entries, inspect

NAME = "ddpm.small"
CONFIG = json.loads((golden.FOLDER / f"{NAME}.json").read_text())["config"]
STATE = golden.network(NAME).state_dict()


def load(path):
    return load_score_model(path, "ddpm", CONFIG)


def test_good_files_pass(tmp_path):
    torch.save({"model": STATE, "ema": {"shadow_params": [torch.ones(3)]}, "step": 3}, tmp_path / "new.pth")
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(STATE, tmp_path / "a.safetensors")
    os.link(tmp_path / "a.safetensors", tmp_path / "misnamed.pt")
    for name in ("new.pth", "old.pth", "a.safetensors", "misnamed.pt"):
        check_archive(tmp_path / name)
        content = read_tensors(tmp_path / name)
        state = content.get("model", content)
        assert all(torch.equal(state[key], tensor) for key, tensor in STATE.items()) and len(state) == len(STATE)


def test_what_files_hold(tmp_path, unet_score):
    save_file(
        {**STATE, "half": torch.zeros(2, dtype=torch.bfloat16)},
        tmp_path / "plain.safetensors",
        metadata={"format": "pt"},
    )
    found = inspect(tmp_path / "plain.safetensors")
    assert (found.format, len(found.tensors), found.metadata, found.description) == (
        "safetensors",
        len(STATE) + 1,
        {"format": "pt"},
        None,
    )
    assert sum(tensor.numel for tensor in found.tensors) == 702_501
    assert {tensor.dtype for tensor in found.tensors} == {"float32", "bfloat16"}

    purify.save_score_model(
        tmp_path / "own.safetensors",
        unet_score,
        "small_unet",
        {"channels": 1, "base_channels": 16, "multipliers": [1, 2], "blocks": 1},
    )
    assert inspect(tmp_path / "own.safetensors").description["architecture"] == "small_unet"

    network = golden.network(NAME).requires_grad_(True)
    content = {
        "optimizer": torch.optim.Adam(network.parameters()).state_dict(),
        "model": {f"module.{name}": tensor for name, tensor in STATE.items()},
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": list(network.parameters())},
        "step": 3,
    }
    for new in (True, False):
        torch.save(content, tmp_path / "checkpoint_8.pth", _use_new_zipfile_serialization=new)
        found = inspect(tmp_path / "checkpoint_8.pth")
        assert (found.format, found.has_average, found.has_optimizer) == ("PyTorch", True, True)
        assert {tensor.name: tensor.shape for tensor in found.tensors} == {
            name: tuple(tensor.shape) for name, tensor in STATE.items()
        }
        assert {f"  model: dict of {len(STATE)}, {len(STATE)} tensors", "    decay: 0.9999", "  step: 3"} <= set(
            found.layout
        )


def test_the_registry_s_networks_are_recognised():
    network = registry.network_of(registry.find("celebahq256-ddpm"))
    tensors = tuple(TensorInfo(name, tuple(tensor.shape), "float32") for name, tensor in network.state_dict().items())
    assert fitting_entries(tensors) == ["celebahq256-ddpm"]
    assert fitting_entries(tensors[1:]) == []
