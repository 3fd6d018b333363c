"""Folders as diffusers' save_pretrained writes them."""

import json
import sys

import golden
import pytest
import torch

from purify import CheckpointError, DiffPure, load_score_model, noise_keys
from purify.schedules import VE, DiscreteVP, LinearVP

diffusers = pytest.importorskip("diffusers", reason="needs the optional extra: pip install purify[diffusers]")


def unet(**changes):
    torch.manual_seed(0)
    settings = dict(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=8,
    )
    settings |= dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    return diffusers.UNet2DModel(**settings | changes).eval()


def pipeline(folder, network, scheduler):
    network.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return folder


@pytest.mark.parametrize(
    ("scheduler", "schedule", "prediction"),
    [
        ({}, LinearVP(0.1, 20.0), "noise"),
        ({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}, DiscreteVP.cosine(), "v"),
        (
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
            DiscreteVP.scaled_linear(),
            "noise",
        ),
        (
            {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3, "prediction_type": "sample"},
            DiscreteVP((0.1, 0.2, 0.3)),
            "x0",
        ),
    ],
    ids=str,
)
def test_outputs_and_process(tmp_path, scheduler, schedule, prediction):
    """Label k of the chain is the marginal after k + 1 steps: alpha^2 of ours is diffusers' alphas_cumprod[k], and so
    is the network's output.
    """
    network, process = unet(), diffusers.DDPMScheduler(**scheduler)
    model = load_score_model(pipeline(tmp_path, network, process), check=False)
    assert (model.schedule, model.prediction, model.image_shape, model.value_range) == (
        schedule,
        prediction,
        (3, 8, 8),
        (-1.0, 1.0),
    )
    length, x = len(process.alphas_cumprod), torch.randn(2, 3, 8, 8)
    # the continuous limit of the chain, or the chain itself
    tolerance = 2e-3 if schedule == LinearVP(0.1, 20.0) else 1e-5
    for k in (0, length // 3, length - 1):
        t = (k + 1) / length
        assert golden.relative_error(model(x, t), network(x, k).sample) < 1e-5
        assert model.schedule.alpha(t) ** 2 == pytest.approx(
            float(process.alphas_cumprod[k]), rel=20 * tolerance, abs=tolerance
        )
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    purified = DiffPure(model, 0.1, 2)(x, noise_keys(0, torch.arange(2), 0))
    assert torch.autograd.grad(purified.sum(), x)[0].isfinite().all()


def test_ve_networks_and_classes(tmp_path):
    network = unet(time_embedding_type="fourier", num_class_embeds=4)
    model = load_score_model(
        pipeline(tmp_path, network, diffusers.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0)), check=False
    )
    assert (
        model.schedule == VE(0.01, 50.0)
        and model.value_range == (0.0, 1.0)
        and model.prediction == "score"
        and model.classes == 4
    )
    x, sigma = torch.randn(2, 3, 8, 8), 0.7
    expected = network(x, torch.tensor([sigma, sigma]), torch.tensor([2, 2])).sample
    assert golden.relative_error(model.with_class(2)(x, model.schedule.time_of(sigma)), expected) < 1e-5


def test_a_model_folder_without_a_pipeline(tmp_path):
    network = unet()
    network.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no scheduler/scheduler_config.json, which says what process"):
        load_score_model(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    x = torch.randn(1, 3, 8, 8)
    assert golden.relative_error(load_score_model(tmp_path, check=False)(x, 0.1), network(x, 99).sample) < 1e-5


def test_what_does_not_fit_is_explained(tmp_path, monkeypatch):
    folder = pipeline(tmp_path, unet(), diffusers.DDPMScheduler())
    config, weights = folder / "unet" / "config.json", folder / "unet" / "diffusion_pytorch_model.safetensors"
    right, whole = json.loads(config.read_text()), weights.read_bytes()

    def refused(message, **changes):
        config.write_text(json.dumps(right | changes))
        with pytest.raises(CheckpointError, match=message):
            load_score_model(folder)
        config.write_text(json.dumps(right))

    refused("holds a 'UNet2DConditionModel'", _class_name="UNet2DConditionModel")
    refused("the weights do not fit|cannot be loaded", layers_per_block=2)
    refused("cannot be loaded|do not fit", block_out_channels=[8, 32])
    config.write_text("{")
    with pytest.raises(CheckpointError, match="config.json is not a readable JSON file"):
        load_score_model(folder)
    config.write_text(json.dumps(right))
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_score_model(folder)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(
        CheckpointError, match="has no diffusion_pytorch_model.safetensors; other formats may carry code"
    ):
        load_score_model(folder)
    weights.write_bytes(whole)
    process = folder / "scheduler" / "scheduler_config.json"
    understood = process.read_text()
    for changes, message in (
        ({"_class_name": "Unknown", "num_train_timesteps": 10}, "a 'Unknown' that is not understood"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "a 'ScoreSdeVeScheduler' that is not understood: KeyError"),
        (json.loads(understood) | {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True ends in pure noise"),
        (json.loads(understood) | {"beta_schedule": "sigmoid"}, "noise schedule 'sigmoid' is not one of"),
    ):
        process.write_text(json.dumps(changes))
        with pytest.raises(CheckpointError, match=message):
            load_score_model(folder)
    old = {name: value for name, value in json.loads(understood).items() if name != "prediction_type"}
    process.write_text(json.dumps(old | {"predict_epsilon": False}))
    assert load_score_model(folder, check=False).prediction == "x0"
    config.write_text(json.dumps(right | {"sample_size": None}))
    assert load_score_model(folder).image_shape is None
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(CheckpointError, match=r"pip install purify\[diffusers\]"):
        load_score_model(folder)
