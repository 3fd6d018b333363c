import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import purify
from purify.networks import build
from purify.schedules import DiscreteVP
from purify.zoo import packaged_score_models
from purify.zoo.checkpoint import CheckpointError

CONFIG = {"channels": 1, "base_channels": 16, "multipliers": [1, 2], "blocks": 1}


@pytest.fixture
def saved(unet_score, tmp_path):
    unet_score.metadata = {"seed": 3}
    path = tmp_path / "model.safetensors"
    purify.save_score_model(path, unet_score, "small_unet", CONFIG, torch.float32)
    return path


def rewritten(path, change):
    """The file with its tensors and description changed by `change(tensors, description)`."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()["purify"])
    tensors = load_file(path)
    change(tensors, description)
    save_file(tensors, path, metadata={"purify": json.dumps(description)})
    return path


def test_round_trip(unet_score, saved):
    loaded = purify.load_score_model(saved, check=False)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded.noise(x, 0.3), unet_score.noise(x, 0.3))
    assert loaded.metadata == {"seed": 3}
    assert loaded.image_shape == (1, 28, 28)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_every_setting_survives(tmp_path):
    network = build("small_unet", CONFIG)
    settings = dict(
        prediction="score",
        image_shape=(1, 28, 28),
        time_scale=-99.0,
        time_offset=99.0,
        label_rounding="nearest",
        t_max=0.5,
    )
    settings |= dict(value_range=(0.0, 1.0), classes=7, metadata={"a": 1})
    model = purify.ScoreModel(network, DiscreteVP.cosine(50), **settings)
    purify.save_score_model(tmp_path / "m.safetensors", model, "small_unet", CONFIG)
    loaded = purify.load_score_model(tmp_path / "m.safetensors", check=False)
    assert loaded.schedule == model.schedule and loaded.time_label == "t"
    assert {name: getattr(loaded, name) for name in settings} == settings


def test_unknown_image_shape_round_trip(unet_score, tmp_path):
    unet_score.image_shape = None
    purify.save_score_model(tmp_path / "m.safetensors", unet_score, "small_unet", CONFIG)
    assert purify.load_score_model(tmp_path / "m.safetensors").image_shape is None


def test_weights_beyond_half_precision_are_refused_when_saved(unet_score, tmp_path):
    with torch.no_grad():
        unet_score.network.conv_in.weight[0, 0, 0, 0] = 1e5
    with pytest.raises(CheckpointError, match="conv_in.weight.*torch.float16"):
        purify.save_score_model(tmp_path / "m.safetensors", unet_score, "small_unet", CONFIG)
    assert not list(tmp_path.iterdir())


def test_packaged_model_names_its_origin():
    assert "fashion-mnist" in packaged_score_models()
    model = purify.load_score_model("fashion-mnist")
    assert model.image_shape == (1, 28, 28)
    assert {"config", "seed", "data", "steps", "quality", "environment"} <= set(model.metadata)
    assert next(model.parameters()).dtype == torch.float32


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(CheckpointError, match="no score model 'cifar'.*fashion-mnist"):
        purify.load_score_model("cifar")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no weight file at .*gone.safetensors"):
        purify.load_score_model(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_truncated_file(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="model.safetensors is not a whole safetensors file"):
        purify.load_score_model(saved)


def test_a_pickle_is_not_opened(tmp_path):
    path = tmp_path / "evil.safetensors"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        purify.load_score_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: t.pop("conv_in.weight"), "(?s)do not fit the architecture.*conv_in.weight"),
        (lambda t, d: t.update(extra=torch.zeros(1)), "(?s)do not fit the architecture.*extra"),
        (
            lambda t, d: t.update({"conv_in.bias": torch.full((16,), float("nan"))}),
            "tensor 'conv_in.bias' holds NaN or infinity",
        ),
        (lambda t, d: d.update(architecture="resnet"), "unknown architecture 'resnet'"),
        (lambda t, d: d["config"].update(width=3), "does not take this configuration"),
        (lambda t, d: d.update(kind="classifier"), "holds a 'classifier', expected a 'score_model'"),
        (lambda t, d: d.pop("schedule"), "description.*schedule"),
        (lambda t, d: d.update(prediction="eps"), "prediction='eps'"),
        (lambda t, d: d.update(t_max=float("nan")), "t_max must be a positive number, got nan"),
        (lambda t, d: d["config"].update(multipliers=[]), "description"),
        (lambda t, d: d["config"].update(base_channels=-8), "description"),
        (lambda t, d: d.update(schedule=["LinearVP"]), "description"),
    ],
)
def test_wrong_contents(saved, change, message):
    rewritten(saved, change)
    with pytest.raises(CheckpointError, match=message):
        purify.load_score_model(saved)


def test_foreign_safetensors(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="no 'purify' description"):
        purify.load_score_model(path)


def test_build_errors():
    with pytest.raises(
        ValueError,
        match=(
            "unknown architecture 'unet'; known: ddpm, edm/EDMPrecond, edm/VEPrecond, edm/VPPrecond,"
            " guided_diffusion/unet, score_sde/ncsnpp, small_unet"
        ),
    ):
        build("unet", {})
