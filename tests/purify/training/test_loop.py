import math

import pytest
import torch

from purify import ScoreModel
from purify.networks import build
from purify.schedules import LinearVP
from purify.training.loop import Trainer, TrainingSettings
from purify.training.objectives import TimeSampling, classification, denoising_score_matching

IMAGES = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 10


def tiny_model():
    torch.manual_seed(0)
    return ScoreModel(
        build("small_unet", {"channels": 1, "base_channels": 8, "multipliers": [1], "blocks": 1}), LinearVP(), "v"
    )


def trainer(steps=6, **settings):
    loss = denoising_score_matching(TimeSampling(focus_share=0.5))
    return Trainer(
        tiny_model(),
        loss,
        IMAGES,
        LABELS,
        TrainingSettings(steps=steps, batch_size=16, warmup_steps=2, precision="float32", **settings),
    )


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


def test_training_reduces_the_loss():
    """Images of one grey each: a network that has learned anything can average the noise away."""
    losses: list[float] = []
    flat = (torch.arange(64) * 4).byte()[:, None, None, None].expand(64, 1, 8, 8).contiguous()
    settings = TrainingSettings(steps=200, batch_size=32, learning_rate=1e-2, warmup_steps=10)
    Trainer(tiny_model(), denoising_score_matching(TimeSampling()), flat, LABELS, settings).run(
        lambda step, loss: bool(losses.append(loss.item()))
    )
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_learning_rate_schedule():
    run = trainer(steps=100, learning_rate=1.0)
    assert run.learning_rate(0) == pytest.approx(0.5)
    assert run.learning_rate(50) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert run.learning_rate(99) < 1e-3


def test_settings_are_checked():
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        TrainingSettings(steps=0)
    with pytest.raises(ValueError, match="batch_size=128 is larger than the data set of 64 images"):
        Trainer(tiny_model(), classification(), IMAGES, LABELS, TrainingSettings(steps=1))
