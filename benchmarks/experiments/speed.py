"""`purify speed`: what purification costs beyond its bare network evaluations.

Attacks' gradients over several draws are timed against the bare calls of the defence that they contain.

All parts are timed in turn, several rounds, in one process, and compared within a round: such ratios hold on a noisy
machine where seconds do not.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from attacks.expectation import Expectation
from attacks.losses import cross_entropy
from attacks.randomness import mix
from benchmarks.runs.schema.audit import Speed, Timing
from purify import DefendedClassifier, DiffPure, ScoreModel, noise_keys
from purify.gradients import MODES, GradientMode
from purify.noise import Stage, standard_normal
from purify.purifiers import Purifier
from purify.solvers.grids import time_grid


def measure(score: ScoreModel, batch: int, steps: int, rounds: int, device: torch.device) -> Speed:
    """Times a purification of random images at t_star = 0.1, its gradient in every mode, and its noise.

    Args:
        score: the score model; its `image_shape` is used.
        batch: images.
        steps: network evaluations of a purification.
        rounds: repetitions, after one for warming up.
        device: where to measure.

    Returns:
        The reference is "bare network evaluations"; under `eot` that of `expectation`.
    """
    score = score.to(device)
    assert score.image_shape is not None
    x = torch.rand((batch, *score.image_shape), generator=torch.Generator().manual_seed(0)).to(device)
    keys = noise_keys(0, torch.arange(batch), 0).to(device)
    purifiers = {mode: DiffPure(score, 0.1, steps, cast(GradientMode, mode)) for mode in MODES}

    @torch.no_grad()
    def forward() -> None:
        purifiers["exact"](x, keys)

    @torch.no_grad()
    def noise() -> None:
        for step in range(steps + 1):
            standard_normal(keys, Stage.INCREMENT, step, tuple(x.shape[1:]))

    parts = {
        BARE: bare_evaluations(score, x, time_grid(0.1, 1e-5, steps)),
        "purifier(x)": forward,
        "noise alone": noise,
    }
    parts |= {
        f"purifier(x) and gradient, {mode}": value_and_gradient(purifier, x, keys)
        for mode, purifier in purifiers.items()
    }
    eot = compare(
        expectation(purifiers["exact"], x[: max(batch // EOT, 1)], keys[: max(batch // EOT, 1)]), rounds, device
    )
    whole = compare(parts, rounds, device)
    return Speed(batch=batch, steps=steps, rounds=rounds, seconds=whole.seconds, ratio=whole.ratio, eot=eot)


BARE = "bare network evaluations"


def bare_evaluations(score: ScoreModel, x: Tensor, times: Sequence[float] | Tensor) -> Callable[[], None]:
    """The network evaluations of a path over `times`, without anything around them or any gradient."""

    @torch.no_grad()
    def run() -> None:
        for t in times[:-1]:
            score.noise(x, t)

    return run


EOT = 8


def expectation(purifier: Purifier, x: Tensor, keys: Tensor) -> dict[str, Callable[[], None]]:
    """An attack's gradient over `EOT` draws in calls of EOT * b rows, and first, as the reference, one call of as many
    rows, forward and backward.

    The classifier is a linear one: of the time that a defence takes it has no share worth the name.
    """
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 10)).to(x.device)
    defended = DefendedClassifier(purifier, classifier)
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    rows = EOT * len(x)
    attacked = Expectation(defended, labels, EOT, rows)
    many, their_keys = x.repeat(EOT, 1, 1, 1), torch.cat([mix(keys, draw) for draw in range(EOT)])

    def bare() -> None:
        inputs = many.clone().requires_grad_()
        torch.autograd.grad(defended(inputs, their_keys).sum(), inputs)

    def batched() -> None:
        attacked.gradient(x, keys, cross_entropy)

    return {
        f"bare call of {rows} rows, forward and backward": bare,
        f"attack's gradient over {EOT} draws of {len(x)} images": batched,
    }


def value_and_gradient(purifier: Purifier, x: Tensor, keys: Tensor) -> Callable[[], None]:
    """Purification and the gradient of the sum of its result."""

    def run() -> None:
        inputs = x.clone().requires_grad_()
        torch.autograd.grad(purifier(inputs, keys).sum(), inputs)

    return run


def compare(parts: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> Timing:
    """The parts in turn, `rounds` times after one for warming up; the first one is the reference."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for round_ in range(rounds + 1):
        # Whatever runs first in a round pays for the caches that the last part left: take turns.
        for name in list(parts)[:: 1 if round_ % 2 else -1]:
            _wait(device)
            started = time.perf_counter()
            parts[name]()
            _wait(device)
            if round_ > 0:
                seconds[name].append(time.perf_counter() - started)
    reference = next(iter(seconds.values()))
    return Timing(
        seconds={name: statistics.median(values) for name, values in seconds.items()},
        ratio={
            name: statistics.median(v / r for v, r in zip(values, reference, strict=True))
            for name, values in seconds.items()
        },
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
