"""APGD's runs for attacks that have a loss or a gradient of their own."""

from typing import Protocol

import torch
from torch import Tensor

from attacks.expectation import Expectation
from attacks.gradient.apgd import Run
from attacks.gradient.pgd import Progress
from attacks.randomness import mix, uniform
from attacks.threats import Threat

_RUN, _BEGIN = range(2)  # what keys are for


class Settings(Protocol):
    """What an attack says about its runs, as `APGD` does."""

    threat: Threat
    iterations: int
    restarts: int
    stop_draws: int
    loss: str
    target_classes: int


def climb(
    settings: Settings,
    x: Tensor,
    keys: Tensor,
    steered: Expectation,
    goal: Expectation,
    random: bool,
    start: Tensor | None,
    progress: Progress | None,
) -> Tensor:
    """The results of `settings.restarts` runs of APGD (see `APGD` for what it does on random models): the best by
    `goal.choose`, the image itself included.

    Args:
        settings: the attack.
        x: (b, c, h, w), in [0, 1], detached.
        keys: (b,) int64.
        steered: gives gradients and losses, and compares points on the way.
        goal: tells what is broken, and compares points in the end.
        random: whether the model is random.
        start: (b, c, h, w), where the first run begins; by default at a random point, as all others.
        progress: called after every gradient.

    Returns:
        (b, c, h, w), allowed by the threat model, detached.
    """
    result, standing = x.clone(), torch.arange(len(x), device=x.device)
    for restart in range(settings.restarts):
        if restart == 0 and start is not None:
            begin = start
        else:
            share = uniform(mix(keys, _BEGIN, restart), tuple(x.shape[1:]), x.dtype)
            begin = settings.threat.project(x + settings.threat.random_start(share), x)

        def report(step: int, restart: int = restart) -> None:
            if progress is not None:
                progress(restart * settings.iterations + step, settings.restarts * settings.iterations)

        steered.begin()
        run = Run(settings, steered, goal, random)  # type: ignore[arg-type]
        result[standing], broken = run(x, begin, mix(keys, _RUN, restart), standing, result[standing], report)
        standing = standing[~broken]
        if not len(standing):
            break
    return result
