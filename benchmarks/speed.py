"""`purify speed`: what purification costs beyond its bare network evaluations.

All parts are timed in turn, several rounds, in one process, and compared within a round: such ratios hold on a noisy machine where seconds do not.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from purify import DiffPure, ScoreModel, noise_keys
from purify.gradients import MODES
from purify.noise import Stage, standard_normal
from purify.sde import time_grid


def measure(score: ScoreModel, batch: int, steps: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds (median over rounds) and ratios to the bare evaluations.

    Args:
        score: the score model; its `image_shape` is used.
        batch: images.
        steps: network evaluations of a purification.
        rounds: repetitions, after one for warming up.
        device: where to measure.

    Returns:
        {"seconds": {part: median}, "ratio": {part: median of its time over that of "bare network evaluations" in the same round}, ...}
    """
    assert score.image_shape is not None
    score = score.to(device)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, *score.image_shape, generator=generator).to(device)
    keys = noise_keys(0, torch.arange(batch), 0).to(device)
    times = time_grid(0.1, 1e-5, steps)

    @torch.no_grad()
    def bare() -> None:
        for t in times[:-1]:
            score.noise(x, t)

    @torch.no_grad()
    def forward() -> None:
        purifiers["exact"](x, keys)

    @torch.no_grad()
    def noise() -> None:
        for step in range(steps + 1):
            standard_normal(keys, Stage.INCREMENT, step, tuple(x.shape[1:]))

    def gradient(mode: str) -> Callable[[], None]:
        def run() -> None:
            inputs = x.clone().requires_grad_()
            torch.autograd.grad(purifiers[mode](inputs, keys).sum(), inputs)

        return run

    purifiers = {mode: DiffPure(score, 0.1, steps, mode) for mode in MODES}
    parts = {"bare network evaluations": bare, "purifier(x)": forward, "noise alone": noise}
    parts |= {f"purifier(x) and gradient, {mode}": gradient(mode) for mode in MODES}
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
    reference = seconds["bare network evaluations"]
    return {
        "batch": batch,
        "steps": steps,
        "rounds": rounds,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": {name: statistics.median(v / r for v, r in zip(values, reference, strict=True)) for name, values in seconds.items()},
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
