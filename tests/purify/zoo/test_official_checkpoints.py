"""Files in the layouts of the official repositories, with the recorded networks' weights in them."""

import json
import os

import golden
import pytest
import torch
from safetensors.torch import save_file

from purify import CheckpointError, DiffPure, load_score_model, noise_keys
from purify.networks import build
from purify.schedules import EDM, VE, DiscreteVP, LinearVP, SubVP


def description(name):
    return json.loads((golden.FOLDER / f"{name}.json").read_text())


def load(path, name, **changes):
    entry = description(name)
    # the recorded weights do not denoise
    return load_score_model(path, entry["architecture"], entry["config"] | changes, check=False)


@pytest.fixture
def score_sde_file(tmp_path):
    """As checkpoint_8.pth: weights that are not the average under `module.` names, the average as a list in parameter
    order, an optimiser.
    """
    network = golden.network("score_sde.ddpmpp_small").requires_grad_(True)
    shadows = [parameter.detach().clone() for parameter in network.parameters()]
    state = {
        f"module.{name}": tensor + (0.01 if tensor.is_floating_point() and name != "sigmas" else 0)
        for name, tensor in network.state_dict().items()
    }
    optimizer = torch.optim.Adam(network.parameters()).state_dict()
    content = {
        "optimizer": optimizer,
        "model": state,
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": shadows},
        "step": 3,
    }
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
    ("name", "label"),
    [
        ("guided_diffusion.small", lambda t: (t + 1) / 1000),
        ("ddpm.small", lambda t: (t + 1) / 1000),
        ("edm.ddpmpp_small", lambda t: t),
    ],
)
def test_plain_state_dicts(tmp_path, name, label, dtype, tolerance):
    """As a PyTorch file and as safetensors; the recorded labels are what the continuous time says."""
    state = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key, tensor in golden.network(name).state_dict().items()
    }
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
    with pytest.raises(ValueError, match="the configuration has no 'training'"):
        load_score_model(
            tmp_path / "vp.pt", entry["architecture"], {key: entry["config"][key] for key in ("data", "model")}
        )


def test_ve_networks_of_images_in_the_unit_range(tmp_path):
    """Tweedie's formula on the range of the training images."""
    name = "score_sde.ncsnpp_ve_small"
    torch.save(golden.network(name).state_dict(), tmp_path / "ve.pt")
    data = description(name)["config"]["data"] | {"centered": False}
    model = load(tmp_path / "ve.pt", name, data=data)
    assert model.schedule == VE(0.01, 50.0) and model.value_range == (0.0, 1.0)
    network = build("score_sde/ncsnpp", description(name)["config"] | {"data": data})
    network.load_state_dict(golden.network(name).state_dict())
    u, sigma = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), 0.3
    with torch.no_grad():
        denoised = u + sigma**2 * network.eval()(u, torch.tensor([sigma, sigma]))
        found = model.denoised(model.from_unit(u), model.schedule.time_of(sigma))
    assert golden.relative_error(model.to_unit(found), denoised) < 1e-4


def test_discrete_labels_count_from_the_largest_noise_level(tmp_path):
    """score_sde's VE networks without continuous times: label i is the i-th of 1000 levels from sigma_max, found by
    rounding.
    """
    name, config = "score_sde.ncsnpp_ve_small", description("score_sde.ncsnpp_ve_small")["config"]
    model_config = config["model"] | {"embedding_type": "positional"}
    network = build("score_sde/ncsnpp", config | {"model": model_config})
    torch.save(network.state_dict(), tmp_path / "ve.pt")
    model = load(tmp_path / "ve.pt", name, model=model_config, training={"sde": "vesde", "continuous": False})
    levels = network.sigmas.double()
    for i in (0, 400, 999):
        t = model.schedule.time_of(float(levels[i])) * (1 + 1e-6)
        assert model._labels(torch.zeros(1, 3, 16, 16), t).tolist() == [i]
        assert model.schedule.sigma(t) == pytest.approx(float(levels[i]), rel=1e-4)
    discrete = load(vp_file(tmp_path), "score_sde.ddpmpp_small", training={"sde": "vpsde", "continuous": False})
    # after 100 steps of the chain, the 100th label
    assert discrete._labels(torch.zeros(1, 3, 16, 16), 0.1).tolist() == [99.0]


def vp_file(folder):
    torch.save(golden.network("score_sde.ddpmpp_small").state_dict(), folder / "vp.pt")
    return folder / "vp.pt"


@pytest.mark.parametrize(
    ("name", "argument"), [("guided_diffusion.small", "num_classes"), ("edm.ddpmpp_small", "label_dim")]
)
def test_class_conditional_networks(tmp_path, name, argument):
    """The class reaches the network: outputs are those of the network called with it, and differ between classes."""
    entry = description(name)
    torch.manual_seed(0)
    network = build(entry["architecture"], entry["config"] | {argument: 5})
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    torch.save(network.state_dict(), tmp_path / "classes.pt")
    model = load(tmp_path / "classes.pt", name, **{argument: 5})
    assert model.classes == 5
    x, t = torch.randn(2, 3, 16, 16), 0.5
    label = t if "edm" in name else 499.0
    labels = torch.tensor([3, 3]) if "guided" in name else torch.eye(5)[[3, 3]]
    expected = network.eval()(x, torch.tensor([label, label]), labels)[:, :3]
    torch.testing.assert_close(model.with_class(3)(x, t), expected, rtol=1e-5, atol=1e-5)
    assert golden.relative_error(model.with_class(1)(x, t), expected) > 1e-3
    purified = DiffPure(model.with_class(3), 0.1, 2, time="vp")(
        torch.rand(2, 3, 16, 16), noise_keys(0, torch.arange(2), 0)
    )
    assert purified.isfinite().all()


def test_the_chains_of_other_noise_schedules(tmp_path):
    """guided-diffusion's 64-pixel networks have cosine betas; other lengths keep the process."""
    torch.save(golden.network("guided_diffusion.small").state_dict(), tmp_path / "adm.pt")
    cosine = load(tmp_path / "adm.pt", "guided_diffusion.small", noise_schedule="cosine", diffusion_steps=1000)
    assert cosine.schedule == DiscreteVP.cosine() and (cosine.time_scale, cosine.time_offset) == (1000, -1)
    shorter = load(tmp_path / "adm.pt", "guided_diffusion.small", diffusion_steps=250)
    assert shorter.schedule == LinearVP(0.1, 20.0) and shorter.time_scale == 250
    with pytest.raises(ValueError, match="noise schedule 'sigmoid' is not one of"):
        load(tmp_path / "adm.pt", "guided_diffusion.small", noise_schedule="sigmoid")
    torch.save(golden.network("ddpm.small").state_dict(), tmp_path / "ddpm.pt")
    process = {"beta_schedule": "linear", "beta_start": 2e-4, "beta_end": 0.02, "num_diffusion_timesteps": 1000}
    assert load(tmp_path / "ddpm.pt", "ddpm.small", diffusion=process).schedule == LinearVP(0.2, 20.0)


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
        ("page.pth", "is a web page, not a checkpoint"),
        ("missing.pt", "no weight file at"),
        ("nan.pt", "tensor 'conv_in.bias' holds NaN or infinity"),
        ("less.pt", "conv_in.bias"),
        ("list.pt", "must hold a dictionary of tensors, got list"),
        ("odd.pt", "is not a state dict.*'epoch' is a int"),
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
