"""Our networks against recorded outputs of the official ones, under official parameter names."""

import copy
import json

import golden
import pytest
import torch

from purify.networks import build
from purify.schedules import LinearVP

TOLERANCES = {
    "score_sde.ddpmpp_small": 3e-6,
    "score_sde.ncsnpp_ve_small": 1e-4,
    "guided_diffusion.small": 3e-6,
    "ddpm.small": 3e-6,
    "edm.ddpmpp_small": 3e-6,
    "edm.ncsnpp_small": 1e-4,
}
"""float32 against float64: the Fourier embedding turns through up to 60 circles, so float32 rounds its angles by 1e-5.
"""


@pytest.mark.parametrize("name", TOLERANCES)
def test_output_and_input_gradient(name):
    io = golden.recorded(name)
    x = io["x"].requires_grad_()
    out = golden.network(name)(x, io["t"])
    (gradient,) = torch.autograd.grad((out * io["v"]).sum(), x)
    assert golden.relative_error(out, io["out"]) < 1e-5
    assert golden.relative_error(gradient, io["grad_x"]) < 1e-5


@pytest.mark.parametrize(("name", "tolerance"), list(TOLERANCES.items()))
def test_float64_agrees(name, tolerance):
    """Every part follows `.double()`: nothing is computed in float32 on the side."""
    io = golden.recorded(name)
    network = golden.network(name)
    single, double = network(io["x"], io["t"]), network.double()(io["x"].double(), io["t"].double())
    assert double.dtype == torch.float64
    assert golden.relative_error(single, double) < tolerance


def config(name):
    return json.loads((golden.FOLDER / f"{name}.json").read_text())["config"]


def varied(**model):
    changed = copy.deepcopy(config("score_sde.ncsnpp_ve_small"))
    changed["model"] |= model
    return changed


@pytest.mark.parametrize("fir", [True, False])
@pytest.mark.parametrize("resblock_type", ["ddpm", "biggan"])
@pytest.mark.parametrize("progressive", ["none", "output_skip", "residual"])
@pytest.mark.parametrize(
    ("progressive_input", "progressive_combine"),
    [("none", "sum"), ("input_skip", "sum"), ("input_skip", "cat"), ("residual", "sum")],
)
def test_every_layer_of_every_ncsnpp_option_takes_part(
    fir, resblock_type, progressive, progressive_input, progressive_combine
):
    """Layers are built and used in one order: a layer left over or used twice would change shapes or leave weights
    without gradient.
    """
    options = dict(
        fir=fir,
        resblock_type=resblock_type,
        progressive=progressive,
        progressive_input=progressive_input,
        progressive_combine=progressive_combine,
    )
    torch.manual_seed(0)
    network = build("score_sde/ncsnpp", varied(**options, nf=8, init_scale=1.0))
    x = torch.randn(2, 3, 16, 16)
    out = network(x, torch.tensor([0.5, 3.0]))
    assert out.shape == x.shape
    out.square().sum().backward()
    unused = [
        name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not unused


def test_ncsnpp_refuses_unknown_options():
    with pytest.raises(ValueError, match="model.resblock_type='resnet' is not one of ddpm, biggan"):
        build("score_sde/ncsnpp", varied(resblock_type="resnet"))
    with pytest.raises(ValueError, match="does not take this configuration"):
        build("score_sde/ncsnpp", {"data": {}, "model": {}})


def adm(**changes):
    torch.manual_seed(0)
    network = build("guided_diffusion/unet", config("guided_diffusion.small") | changes)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize(
    "changes",
    [
        {"resblock_updown": False},
        {"resblock_updown": False, "conv_resample": False},
        {"use_scale_shift_norm": False},
        {"num_head_channels": -1, "num_heads": 4},
    ],
)
def test_every_layer_of_every_adm_option_takes_part(changes):
    network = adm(**changes)
    out = network(torch.randn(2, 3, 16, 16), torch.tensor([3.0, 400.0]))
    assert out.shape == (2, 6, 16, 16)
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_adm_attention_orders_are_permutations_of_each_other():
    """The two orders differ in how the rows of `qkv` are grouped, and in nothing else."""
    old, new = adm(use_new_attention_order=False), adm(use_new_attention_order=True)
    new.load_state_dict(old.state_dict())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 400.0])
    assert golden.relative_error(new(x, t), old(x, t)) > 1e-3
    for block in (m for m in new.modules() if hasattr(m, "qkv")):
        channels = block.qkv.in_channels
        rows = torch.arange(3 * channels).reshape(block.heads, 3, channels // block.heads).transpose(0, 1).flatten()
        block.qkv.weight.data, block.qkv.bias.data = block.qkv.weight[rows], block.qkv.bias[rows]
    assert golden.relative_error(new(x, t), old(x, t)) < 1e-5


def test_class_conditional_adm_needs_its_labels():
    network = adm(num_classes=5)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 400.0])
    with pytest.raises(ValueError, match="num_classes=5 takes class labels y"):
        network(x, t)
    first, second = (network(x, t, torch.tensor(y)) for y in ([0, 1], [0, 2]))
    assert torch.equal(first[0], second[0]) and not torch.allclose(first[1], second[1])
    with pytest.raises(ValueError, match="takes no class labels"):
        adm()(x, t, torch.tensor([0, 1]))


def edm(architecture, **changes):
    torch.manual_seed(0)
    return build(architecture, config("edm.ncsnpp_small") | changes)


@pytest.mark.parametrize("embedding_type", ["positional", "fourier"])
@pytest.mark.parametrize("encoder_type", ["standard", "skip", "residual"])
@pytest.mark.parametrize("decoder_type", ["standard", "skip"])
def test_every_layer_of_every_songunet_option_takes_part(embedding_type, encoder_type, decoder_type):
    options = {
        "embedding_type": embedding_type,
        "encoder_type": encoder_type,
        "decoder_type": decoder_type,
        "label_dim": 3,
        "model_channels": 16,
    }
    network = edm("edm/EDMPrecond", **options)
    out = network(torch.randn(2, 3, 16, 16), torch.tensor([0.5, 3.0]), torch.eye(3)[:2])
    assert out.shape == (2, 3, 16, 16)
    out.square().sum().backward()
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]


def test_dhariwal_unet():
    kept = {
        key: config("edm.ncsnpp_small")[key]
        for key in ("img_resolution", "img_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout")
    }
    network = build("edm/EDMPrecond", {**kept, "model_type": "DhariwalUNet", "model_channels": 64, "label_dim": 3})
    out = network(torch.randn(2, 3, 16, 16), torch.tensor([0.5, 3.0]))
    out.square().sum().backward()
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]


def test_preconditioning_has_its_limits():
    """Table 1 of Karras et al.: without noise D is the identity, and VP's label is 999 times the continuous time of
    that noise level.
    """
    x = torch.randn(2, 3, 16, 16)
    for kind in ("EDM", "VP", "VE"):
        small = edm(f"edm/{kind}Precond")(x, torch.tensor([1e-6, 1e-6]))
        assert golden.relative_error(small, x) < 1e-4
    schedule, t = LinearVP(), 0.3
    sigma = torch.tensor(schedule.sigma(t) / schedule.alpha(t), dtype=torch.float64).reshape(1, 1, 1, 1)
    c_skip, c_out, c_in, c_noise = edm("edm/VPPrecond").coefficients(sigma)
    assert float(c_noise) == pytest.approx(999 * t, rel=1e-9) and float(c_in) == pytest.approx(
        schedule.alpha(t), rel=1e-9
    )
    assert (c_skip, float(c_out)) == (1.0, -float(sigma))
    with pytest.raises(ValueError, match="encoder_type='none' is not one of standard, skip, residual"):
        edm("edm/EDMPrecond", encoder_type="none")
    with pytest.raises(ValueError, match="model_type='UNet' is not one of SongUNet, DhariwalUNet"):
        edm("edm/EDMPrecond", model_type="UNet")
