"""Files in the layouts of the official repositories, with the recorded networks' weights in them."""

import json
import os

import golden
import pytest
import torch
from safetensors.torch import save_file

from purify import CheckpointError, DiffPure, load_score_model, noise_keys
from purify.networks import build
from purify.schedules import EDM, VE, LinearVP, SubVP


def description(name):
    return json.loads((golden.FOLDER / f"{name}.json").read_text())


def load(path, name, **changes):
    entry = description(name)
    return load_score_model(path, entry["architecture"], entry["config"] | changes)


@pytest.fixture
def score_sde_file(tmp_path):
    """As checkpoint_8.pth: weights that are not the average under `module.` names, the average as a list in parameter order, an optimiser."""
    network = golden.network("score_sde.ddpmpp_small").requires_grad_(True)
    shadows = [parameter.detach().clone() for parameter in network.parameters()]
    state = {f"module.{name}": tensor + (0.01 if tensor.is_floating_point() and name != "sigmas" else 0) for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters()).state_dict()
    content = {"optimizer": optimizer, "model": state, "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": shadows}, "step": 3}
    torch.save(content, tmp_path / "checkpoint_8.pth")
    return tmp_path / "checkpoint_8.pth"


def test_score_sde_checkpoint_gives_its_average(score_sde_file):
    model, io = load(score_sde_file, "score_sde.ddpmpp_small"), golden.recorded("score_sde.ddpmpp_small")
    assert model.schedule == LinearVP(0.1, 20.0) and model.image_shape == (3, 16, 16)
    t = io["t"] / 999
    assert golden.relative_error(model.noise(io["x"], t), io["out"]) < 1e-5
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert DiffPure(model, 0.1, 2)(torch.rand(2, 3, 16, 16), noise_keys(0, torch.arange(2), 0)).isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
@pytest.mark.parametrize(
    ("name", "label"), [("guided_diffusion.small", lambda t: (t + 1) / 1000), ("ddpm.small", lambda t: (t + 1) / 1000), ("edm.ddpmpp_small", lambda t: t)]
)
def test_plain_state_dicts(tmp_path, name, label, dtype, tolerance):
    """As a PyTorch file and as safetensors; the recorded labels are what the continuous time says."""
    state = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in golden.network(name).state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    save_file(state, tmp_path / "weights.safetensors")
    io = golden.recorded(name)
    for file in ("weights.pt", "weights.safetensors"):
        model = load(tmp_path / file, name)
        assert golden.relative_error(model(io["x"], label(io["t"].float())), io["out"][:, :3]) < tolerance
        assert model.prediction == ("x0" if "edm" in name else "noise")


def test_the_process_is_that_of_the_configuration(tmp_path):
    entry = description("score_sde.ncsnpp_ve_small")
    torch.save(golden.network("score_sde.ncsnpp_ve_small").state_dict(), tmp_path / "ve.pt")
    assert load(tmp_path / "ve.pt", "score_sde.ncsnpp_ve_small").schedule == VE(0.01, 50.0)
    torch.save(golden.network("score_sde.ddpmpp_small").state_dict(), tmp_path / "vp.pt")
    sub = load(tmp_path / "vp.pt", "score_sde.ddpmpp_small", training={"sde": "subvpsde", "continuous": True})
    assert sub.schedule == SubVP(0.1, 20.0)
    torch.save(golden.network("edm.ddpmpp_small").state_dict(), tmp_path / "edm.pt")
    assert load(tmp_path / "edm.pt", "edm.ddpmpp_small").schedule == EDM(80.0)
    with pytest.raises(ValueError, match="training.sde='vesde' with positional labels is not one of vpsde, subvpsde"):
        load(tmp_path / "vp.pt", "score_sde.ddpmpp_small", training={"sde": "vesde", "continuous": True})
    with pytest.raises(ValueError, match="class-conditional networks need labels"):
        load(tmp_path / "vp.pt", "guided_diffusion.small", num_classes=10)
    with pytest.raises(ValueError, match="class-conditional networks need labels"):
        load(tmp_path / "edm.pt", "edm.ddpmpp_small", label_dim=10)
    with pytest.raises(ValueError, match="the configuration has no 'training'"):
        load_score_model(tmp_path / "vp.pt", entry["architecture"], {key: entry["config"][key] for key in ("data", "model")})


def test_ve_networks_of_images_in_the_unit_range(tmp_path):
    """Tweedie's formula on [0, 1] and on [-1, 1] must name the same image."""
    name = "score_sde.ncsnpp_ve_small"
    torch.save(golden.network(name).state_dict(), tmp_path / "ve.pt")
    data = description(name)["config"]["data"] | {"centered": False}
    model = load(tmp_path / "ve.pt", name, data=data)
    assert model.schedule == VE(0.02, 100.0)
    network = build("score_sde/ncsnpp", description(name)["config"] | {"data": data})
    network.load_state_dict(golden.network(name).state_dict())
    u, sigma = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), 0.3
    with torch.no_grad():
        denoised = u + sigma**2 * network.eval()(u, torch.tensor([sigma, sigma]))
        found = model.denoised(2 * u - 1, model.schedule.time_of(2 * sigma))
    assert golden.relative_error((found + 1) / 2, denoised) < 1e-4


class Bomb:
    def __reduce__(self):
        return os.mkdir, (Bomb.target,)


def test_pickles_with_code_are_refused_and_not_executed(tmp_path):
    Bomb.target = str(tmp_path / "exploded")
    torch.save({"model": Bomb()}, tmp_path / "bomb.pt")
    torch.save(golden.network("ddpm.small"), tmp_path / "module.pt")
    for file in ("bomb.pt", "module.pt"):
        with pytest.raises(CheckpointError, match=r"carries code.*safetensors.torch.save_file"):
            load(tmp_path / file, "ddpm.small")
    assert not (tmp_path / "exploded").exists()


def test_files_that_do_not_fit_are_explained(tmp_path, score_sde_file):
    whole = score_sde_file.read_bytes()
    (tmp_path / "torn.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.pth").write_text("<html>Quota exceeded</html>")
    state = golden.network("ddpm.small").state_dict()
    torch.save({**state, "conv_in.bias": torch.full((32,), torch.nan)}, tmp_path / "nan.pt")
    torch.save({key: tensor for key, tensor in state.items() if key != "conv_in.bias"}, tmp_path / "less.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "odd.pt")
    for file, message in (
        ("torn.pth", "is not a whole checkpoint"),
        ("page.pth", "carries code, or is no PyTorch checkpoint"),
        ("missing.pt", "no weight file at"),
        ("nan.pt", "tensor 'conv_in.bias' holds NaN or infinity"),
        ("less.pt", "conv_in.bias"),
        ("list.pt", "must hold a dictionary of tensors, got list"),
        ("odd.pt", "is not a state dict: 'epoch' is a int"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / file, "ddpm.small")
    content = torch.load(score_sde_file, weights_only=True)
    content["ema"]["shadow_params"].pop()
    torch.save(content, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match="the moving average has 153 tensors, the network 154 parameters"):
        load(tmp_path / "short.pth", "score_sde.ddpmpp_small")
    with pytest.raises(ValueError, match="architecture and config go together"):
        load_score_model(score_sde_file, architecture="score_sde/ncsnpp")
    with pytest.raises(ValueError, match="is not a readable JSON file"):
        load_score_model(score_sde_file, "score_sde/ncsnpp", tmp_path / "missing.json")
    with pytest.raises(ValueError, match="has no official checkpoints"):
        load_score_model(score_sde_file, "small_unet", {"channels": 1})
