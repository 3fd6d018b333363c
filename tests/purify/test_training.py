import math

import pytest
import torch
from torch import nn

from purify import ScoreModel
from purify.networks import build
from purify.schedules import LinearVP
from purify.training import TimeSampling, Trainer, TrainingSettings, classification, denoising_score_matching

IMAGES = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 10


def tiny_model():
    torch.manual_seed(0)
    return ScoreModel(build("small_unet", {"channels": 1, "base_channels": 8, "multipliers": [1], "blocks": 1}), LinearVP(), "v")


def trainer(steps=6, **settings):
    loss = denoising_score_matching(TimeSampling(focus_share=0.5))
    return Trainer(tiny_model(), loss, IMAGES, LABELS, TrainingSettings(steps=steps, batch_size=16, warmup_steps=2, precision="float32", **settings))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = trainer()
    whole.run()
    first = trainer()
    first.run(stop=lambda step, loss: step == 3)
    assert first.step == 3
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = trainer()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second.run()
    assert second.step == 6
    assert torch.equal(weights(second.model), weights(whole.model))
    assert torch.equal(weights(second.average), weights(whole.average))


def test_training_leaves_the_global_generator_alone():
    run = trainer(steps=2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    run.run()
    assert torch.equal(before, torch.get_rng_state())


def test_every_image_is_seen_once_an_epoch():
    run, seen = trainer(steps=8), []
    for step in range(8):
        run.step = step
        seen.append(run._batch_rows())
    assert sorted(torch.cat(seen[:4]).tolist()) == list(range(64)) == sorted(torch.cat(seen[4:]).tolist())
    assert not torch.equal(torch.cat(seen[:4]), torch.cat(seen[4:]))


def test_score_matching_loss_of_the_exact_network_is_the_posterior_variance(gaussian_score):
    """For Gaussian data the best noise prediction leaves E Var(n | x_t) = alpha^2 s^2 / (alpha^2 s^2 + sigma^2), averaged over t."""
    # Four standard deviations fit into [-1, 1]: the bytes clip next to nothing.
    score, std, times = gaussian_score(0.0, 0.25), 0.25, TimeSampling(t_min=0.2, focus=0.201, t_max=0.202, focus_share=0.0)
    generator = torch.Generator().manual_seed(0)
    data = ((std * torch.randn(400, 1, 16, 16, generator=generator) + 1) * 127.5).round().clamp(0, 255).byte()
    loss = denoising_score_matching(times)(score, data, torch.zeros(400), generator).item()
    signal = LinearVP().alpha(0.201) ** 2 * std**2
    assert loss == pytest.approx(signal / (signal + LinearVP().sigma(0.201) ** 2), rel=0.03)


def test_score_matching_mirrors_half_of_the_images():
    """Almost without noise, what the network sees is the image or its mirror image."""
    seen = []

    class Recorder(nn.Module):
        def forward(self, x, labels):
            seen.append(x)
            return x

    times = TimeSampling(t_min=1e-9, focus=1e-8, t_max=1e-8)
    for flip in (False, True):
        denoising_score_matching(times, flip)(ScoreModel(Recorder(), LinearVP()), IMAGES, LABELS, torch.Generator().manual_seed(0))
    clean = IMAGES.float() / 127.5 - 1
    same, mirrored = ((seen[1] - other).abs().amax((1, 2, 3)) < 1e-3 for other in (clean, clean.flip(3)))
    assert (same | mirrored).all() and 0.2 < mirrored.double().mean() < 0.8
    assert (seen[0] - clean).abs().max() < 1e-3


def test_time_sampling_has_the_stated_shares():
    times = TimeSampling(focus=0.3, focus_share=0.75).draw(100_000, torch.Generator().manual_seed(0))
    assert times.min() >= 1e-5 and times.max() <= 1
    assert (times < 0.3).double().mean().item() == pytest.approx(0.75 + 0.25 * 0.3, abs=0.001)
    assert (times > 0.65).double().mean().item() == pytest.approx(0.25 * 0.35, abs=0.001)


def test_training_reduces_the_loss():
    """Images of one grey each: a network that has learned anything can average the noise away."""
    losses: list[float] = []
    flat = (torch.arange(64) * 4).byte()[:, None, None, None].expand(64, 1, 8, 8).contiguous()
    settings = TrainingSettings(steps=200, batch_size=32, learning_rate=1e-2, warmup_steps=10)
    Trainer(tiny_model(), denoising_score_matching(TimeSampling()), flat, LABELS, settings).run(lambda step, loss: bool(losses.append(loss.item())))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_learning_rate_schedule():
    run = trainer(steps=100, learning_rate=1.0)
    assert run.learning_rate(0) == pytest.approx(0.5)
    assert run.learning_rate(50) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert run.learning_rate(99) < 1e-3


def test_classifier_augmentation_moves_whole_images():
    """With shift and mirror, every batch is made of shifted, mirrored originals and nothing else."""
    seen = []

    class Recorder(nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(len(x), 10)

    many = IMAGES.repeat(8, 1, 1, 1)  # enough for each of the 18 variants to occur
    loss = classification(shift=1, flip=True)(Recorder(), many, LABELS.repeat(8), torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(math.log(10))
    padded = nn.functional.pad(many.float() / 255, (1,) * 4)
    options = [v[..., r : r + 8, c : c + 8] for r in range(3) for c in range(3) for v in (padded,)]
    options = torch.stack([o for option in options for o in (option, option.flip(3))])
    matches = (options == seen[0]).flatten(2).all(2)
    assert matches.any(0).all()
    assert matches.any(1).all()


def test_settings_are_checked():
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        TrainingSettings(steps=0)
    with pytest.raises(ValueError, match="batch_size=128 is larger than the data set of 64 images"):
        Trainer(tiny_model(), classification(), IMAGES, LABELS, TrainingSettings(steps=1))
    with pytest.raises(ValueError, match="need 0 < t_min < focus"):
        TimeSampling(focus=0.0)
