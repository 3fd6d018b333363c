import json
import math

import golden
import pytest
import torch
from processes import STRAIGHT
from torch import nn

from purify import DiffPure, ScoreModel, load_score_model, noise_keys, save_score_model
from purify.networks import build
from purify.networks.gaussian import GaussianNoise
from purify.schedules import EDM, VE, DiscreteVP, LinearVP, SubVP
from purify.zoo.official import load_official


class Oracle(nn.Module):
    """Returns what each parametrisation asks for, given the true x0 and noise."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x, t):
        return self.output


@pytest.mark.parametrize("schedule", [LinearVP(), SubVP(), VE(), EDM(), STRAIGHT], ids=str)
@pytest.mark.parametrize("prediction", ["noise", "score", "x0", "v", "edm"])
def test_every_parametrisation_means_the_same(prediction, schedule):
    """A network that returns its training target gives back the true noise, score and image, for float and tensor
    times.
    """
    t = 0.37
    x0, noise = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = ScoreModel(Oracle(None), schedule, prediction)
    model.network.output = model.target(x0, noise, t)
    x_t = model.diffuse(x0, noise, t)
    torch.testing.assert_close(x_t, schedule.alpha(t) * x0 + schedule.sigma(t) * noise)
    for time in (t, torch.full((3,), t, dtype=torch.float64)):
        torch.testing.assert_close(model.noise(x_t, time), noise)
        torch.testing.assert_close(model.score(x_t, time), -noise / schedule.sigma(t))
        torch.testing.assert_close(model.denoised(x_t, time), x0)


class Recorder(nn.Module):
    def forward(self, x, t):
        self.seen = t
        return x


@pytest.mark.parametrize(
    ("schedule", "arguments", "expected"),
    [
        (LinearVP(), {"time_scale": 999.0}, 499.5),
        (LinearVP(), {"time_scale": 1000.0, "time_offset": -1.0}, 499.0),
        (LinearVP(), {"time_scale": 1003.0, "label_rounding": "floor"}, 501.0),
        (VE(), {"time_scale": -999.0, "time_offset": 999.0, "label_rounding": "nearest"}, 500.0),
        (LinearVP(), {"time_label": "sigma"}, LinearVP().sigma(0.5) / LinearVP().alpha(0.5)),
        (VE(), {"time_label": "sigma"}, VE().sigma(0.5)),
        (EDM(), {"time_label": "sigma"}, 0.5),
    ],
)
def test_time_labels(schedule, arguments, expected):
    model = ScoreModel(Recorder(), schedule, "noise", **arguments)
    for t in (0.5, torch.tensor([0.5, 0.5])):
        model(torch.zeros(2, 1, 4, 4), t)
        assert model.network.seen.dtype == torch.float32
        assert model.network.seen.tolist() == pytest.approx([expected] * 2, rel=1e-6)


def test_networks_that_are_labelled_by_sigma():
    """EDM's network is a denoiser, score_sde's VE network a score (its recorded outputs are): each seen as the same
    kind of model.
    """
    io = golden.recorded("edm.ddpmpp_small")
    model = ScoreModel(golden.network("edm.ddpmpp_small"), EDM(), "x0", time_label="sigma")
    torch.testing.assert_close(
        model.denoised(io["x"], io["t"]), io["out"], rtol=0, atol=1e-5 * float(io["out"].abs().max())
    )

    io, schedule = golden.recorded("score_sde.ncsnpp_ve_small"), VE(0.01, 50.0)
    model = ScoreModel(golden.network("score_sde.ncsnpp_ve_small"), schedule, "score", time_label="sigma")
    t = torch.tensor([schedule.time_of(float(sigma)) for sigma in io["t"]])
    # the Fourier embedding amplifies the rounding of t
    assert golden.relative_error(model.score(io["x"], t), io["out"]) < 1e-4
    assert (
        golden.relative_error(model.denoised(io["x"], t), io["x"] + io["t"].reshape(-1, 1, 1, 1) ** 2 * io["out"])
        < 1e-4
    )


def test_edm_networks_are_given_scaled_images_and_logarithms():
    """F(c_in x / alpha; ln(sigma / alpha) / 4), for float times and for one time an image."""
    schedule, sd = LinearVP(), 0.7
    model = ScoreModel(Recorder(), schedule, "edm", sigma_data=sd)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.1, 0.5], dtype=torch.float64)
    given, labels = model(x, times), model.network.seen
    for i, t in enumerate(times.tolist()):
        ratio = schedule.sigma(t) / schedule.alpha(t)
        torch.testing.assert_close(given[i], x[i] / schedule.alpha(t) / (ratio**2 + sd**2) ** 0.5)
        assert float(labels[i]) == pytest.approx(math.log(ratio) / 4, rel=1e-6)
        torch.testing.assert_close(model(x[i : i + 1], t), given[i : i + 1])
    assert labels.dtype == given.dtype == torch.float32


def test_the_raw_network_inside_edm_preconditioning():
    """Its recorded denoiser, from its raw network: c_skip x + c_out F."""
    io, network = golden.recorded("edm.ddpmpp_small"), golden.network("edm.ddpmpp_small")
    model = ScoreModel(network.model, EDM(), "edm", sigma_data=network.sigma_data)
    torch.testing.assert_close(
        model.denoised(io["x"], io["t"]), io["out"], rtol=0, atol=1e-5 * float(io["out"].abs().max())
    )


def test_edm_models_purify():
    """The exact F of Gaussian data gives the same purifier, with its gradient, as the exact predicted noise."""
    schedule, std, sd = LinearVP(), 0.8, 0.5

    class Raw(nn.Module):
        def forward(self, scaled, c_noise):
            ratio = (4 * c_noise).exp()[:, None, None, None]
            total = ratio**2 + sd**2
            y = scaled * total.sqrt()
            denoised = (std**2 * y + 0.2 * ratio**2) / (ratio**2 + std**2)
            return (denoised - sd**2 / total * y) * total.sqrt() / (ratio * sd)

    results = []
    for model in (ScoreModel(Raw(), schedule, "edm"), ScoreModel(GaussianNoise(schedule, 0.2, std), schedule)):
        x = torch.linspace(0, 1, 32, dtype=torch.float64).reshape(2, 1, 4, 4).requires_grad_()
        y = DiffPure(model, 0.1, 5)(x, noise_keys(0, torch.arange(2), 0))
        results.append((y, torch.autograd.grad(y.square().sum(), x)[0]))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", ["noise", "score", "x0", "v", "edm"])
def test_one_time_an_image(prediction):
    """float64 times (b,) with float32 images: float32 results, each row that of its own float time."""

    class Network(nn.Module):
        def forward(self, x, labels):
            return x.sin() * labels.cos()[:, None, None, None]

    model = ScoreModel(Network(), LinearVP(), prediction)
    x, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.01, 0.1, 0.9], dtype=torch.float64)
    for name in ("noise", "score", "denoised", "diffuse", "target"):
        inputs = (x, noise) if name in ("diffuse", "target") else (x,)
        together = getattr(model, name)(*inputs, times)
        assert together.dtype == torch.float32
        for i, t in enumerate(times.tolist()):
            alone = getattr(model, name)(*(tensor[i : i + 1] for tensor in inputs), t)
            assert alone.dtype == torch.float32
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


class Double(nn.Module):
    def forward(self, x, t):
        return torch.cat([x, 7 * x], dim=1)


def test_learned_variance_is_left_out():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(ScoreModel(Double(), LinearVP())(x, 0.5), x)


def test_learned_variance_on_demand():
    """The same noise as without, the raw second half, and one evaluation."""
    model, x, seen = ScoreModel(Double(), LinearVP(), "v", learned_variance=True), torch.randn(2, 3, 4, 4), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    noise, variance = model.noise_and_variance(x, 0.5)
    assert seen == [2]
    assert torch.equal(variance, 7 * x)
    assert torch.equal(noise, model.noise(x, 0.5))
    with pytest.raises(
        ValueError,
        match=(
            "the score model has learned_variance=False; say learned_variance=True for a network with 2c output"
            " channels"
        ),
    ):
        ScoreModel(Double(), LinearVP()).noise_and_variance(x, 0.5)
    with pytest.raises(ValueError, match="needs a network with 6 output channels for images of 3, got 3"):
        ScoreModel(Recorder(), LinearVP(), learned_variance=True).noise_and_variance(x, 0.5)


def test_learned_variance_of_official_networks(tmp_path):
    """guided-diffusion's network says so itself, and its second half is what was recorded."""
    description = json.loads((golden.FOLDER / "guided_diffusion.small.json").read_text())
    torch.save(golden.network("guided_diffusion.small").state_dict(), tmp_path / "adm.pt")
    model = load_official(tmp_path / "adm.pt", description["architecture"], description["config"])
    model.eval()
    io = golden.recorded("guided_diffusion.small")
    noise, variance = model.noise_and_variance(io["x"], (io["t"].double() + 1) / 1000)
    assert model.learned_variance
    for found, recorded in zip((noise, variance), io["out"].chunk(2, dim=1), strict=True):
        assert golden.relative_error(found, recorded) < 1e-4
    torch.save(golden.network("ddpm.small").state_dict(), tmp_path / "ddpm.pt")
    description = json.loads((golden.FOLDER / "ddpm.small.json").read_text())
    assert not load_official(tmp_path / "ddpm.pt", description["architecture"], description["config"]).learned_variance


def test_files_keep_the_parametrisation(tmp_path):
    config = {"channels": 1, "base_channels": 8, "multipliers": [1], "blocks": 1}
    model = ScoreModel(
        build("small_unet", config), LinearVP(), "edm", (1, 8, 8), sigma_data=0.31, learned_variance=True
    )
    save_score_model(tmp_path / "m.safetensors", model, "small_unet", config)
    loaded = load_score_model(tmp_path / "m.safetensors", check=False)
    assert (loaded.prediction, loaded.sigma_data, loaded.learned_variance) == ("edm", 0.31, True)


@pytest.mark.parametrize("schedule", [LinearVP(), VE(), EDM()], ids=str)
def test_the_range_of_the_training_images_changes_nothing_else(schedule):
    """A model of Gaussian images on [-1, 1] and the same images' model on [0, 1] purify alike, given half the noise on
    half the range.
    """
    wide = ScoreModel(GaussianNoise(schedule, 0.2, 0.5), schedule)
    x, keys = torch.rand(2, 1, 4, 4, dtype=torch.float64), noise_keys(0, torch.arange(2), 0)
    if isinstance(schedule, LinearVP):  # its noise cannot be halved; there the range alone must cancel
        narrow = ScoreModel(GaussianNoise(schedule, 0.6, 0.25), schedule, value_range=(0.0, 1.0))
        reference = ScoreModel(GaussianNoise(schedule, 0.6, 0.25), schedule)
        found, expected = narrow.to_unit(narrow.from_unit(x)), x
        assert torch.equal(reference.from_unit(x), 2 * x - 1)
    else:
        half = (
            VE(schedule.sigma_min / 2, schedule.sigma_max / 2)
            if isinstance(schedule, VE)
            else EDM(schedule.sigma_max / 2)
        )
        narrow = ScoreModel(GaussianNoise(half, 0.6, 0.25), half, value_range=(0.0, 1.0))
        found, expected = (DiffPure(model, 0.1, 50, time="vp", eta=0.5)(x, keys) for model in (narrow, wide))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", [LinearVP(), SubVP(), VE(), EDM(), DiscreteVP.linear()], ids=str)
def test_times_of_the_vp_process(schedule):
    """The same ratio of noise to signal, to the rounding of a float; never a time before the process begins."""
    model, vp = ScoreModel(nn.Identity(), schedule), LinearVP()
    for t in (0.01, 0.1, 0.5):
        own = model.time_of_vp(t)
        assert schedule.sigma(own) / schedule.alpha(own) == pytest.approx(vp.sigma(t) / vp.alpha(t), rel=1e-9)
        many = model.time_of_vp(torch.tensor([t, 1e-9], dtype=torch.float64))
        assert many.tolist() == pytest.approx([own, model.time_of_vp(1e-9)], rel=1e-9)
    assert model.time_of_vp(1e-9) > 0
    assert not isinstance(schedule, VE) or model.time_of_vp(1e-9) == 1e-5


class OfClass(nn.Module):
    """Returns x + 10 * class."""

    def forward(self, x, t, labels):
        assert labels.dtype == torch.int64
        return x + 10 * labels[:, None, None, None]


def test_class_conditional_networks_are_told_their_class():
    model = ScoreModel(OfClass(), LinearVP(), classes=3)
    x = torch.zeros(2, 1, 4, 4)
    for call in (lambda: model(x, 0.5), lambda: DiffPure(model)):
        with pytest.raises(
            ValueError, match=r"class-conditional, with 3 classes: choose one by score.with_class\(label\)"
        ):
            call()
    chosen = model.with_class(2)
    assert torch.equal(chosen(x, 0.5), x + 20) and torch.equal(model.with_class(1)(x, 0.5), x + 10)
    assert model.class_label is None and chosen.network is model.network
    assert DiffPure(chosen, 0.1, 2)(x).isfinite().all()
    for label in (3, -1, 1.0):
        with pytest.raises(ValueError, match="the network has classes 0 to 2"):
            model.with_class(label)
    with pytest.raises(ValueError, match="is not class-conditional"):
        ScoreModel(nn.Identity(), LinearVP()).with_class(0)


@pytest.mark.parametrize("module", [nn.Conv2d(3, 3, 3, padding=1)], ids=["conv"])
def test_any_module_in_one_line(module):
    """The README's way to bring a network: any module of (x, labels)."""

    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = module

        def forward(self, x, labels):
            return self.layer(x) * labels[:, None, None, None]

    score = ScoreModel(Mine(), LinearVP(), "noise", image_shape=(3, 8, 8), time_scale=1000, time_offset=-1)
    assert DiffPure(score, 0.1, 3)(torch.rand(2, 3, 8, 8)).shape == (2, 3, 8, 8)


def test_unknown_prediction():
    with pytest.raises(ValueError, match="prediction='epsilon' is not one of noise, score, x0, v, edm"):
        ScoreModel(nn.Identity(), LinearVP(), "epsilon")
    with pytest.raises(ValueError, match="time_label='step' is not one of t, sigma"):
        ScoreModel(nn.Identity(), LinearVP(), time_label="step")
    with pytest.raises(ValueError, match='label_rounding goes with time_label="t"'):
        ScoreModel(nn.Identity(), LinearVP(), time_label="sigma", label_rounding="floor")
    for arguments, message in (
        ({"time_scale": 0.0}, "time_scale must be a number other than 0"),
        ({"value_range": (1.0, 0.0)}, r"value_range must be \(lowest, highest\), got \(1.0, 0.0\)"),
        ({"classes": 0}, "classes must be a positive number"),
        ({"sigma_data": 0.0}, "sigma_data must be a positive number, got 0.0"),
        ({"prediction": "edm", "time_scale": 999.0}, 'prediction="edm" has its own labels'),
        ({"prediction": "edm", "label_rounding": "floor"}, 'prediction="edm" has its own labels'),
        ({"label_rounding": "up"}, "label_rounding='up' is not one of None, floor, nearest"),
    ):
        with pytest.raises(ValueError, match=message):
            ScoreModel(nn.Identity(), LinearVP(), **arguments)
    with pytest.raises(ValueError, match='prediction="edm" has labels that are not counted'):
        ScoreModel(nn.Identity(), LinearVP(), "edm").with_label_rounding("floor")


def test_the_noise_level_has_the_units_of_images_in_minus_one_to_one():
    vp = ScoreModel(nn.Identity(), LinearVP())
    assert vp.noise_level(0.1) == pytest.approx(vp.schedule.sigma(0.1) / vp.schedule.alpha(0.1))
    ve = ScoreModel(nn.Identity(), VE(), value_range=(0.0, 1.0))
    assert ve.noise_level(ve.time_of_vp(0.1)) == pytest.approx(vp.noise_level(0.1))
    assert ve.noise_level(0.5) == pytest.approx(2 * ve.schedule.sigma(0.5) / ve.schedule.alpha(0.5))
