"""What a run will cost, measured on a few images before it starts, and how to fit it into a time."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from attacks.expectation import takes_keys
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError
from benchmarks.evaluation.precision import full_precision
from benchmarks.evaluation.result import Evaluation
from benchmarks.experiments.bench import Bench
from benchmarks.experiments.bench_rows import Row
from benchmarks.reports.text import reduction_lines
from benchmarks.runs.cost import CostEstimate, RowCost
from benchmarks.runs.durations import duration, parse_duration
from benchmarks.runs.environment import peak_memory
from benchmarks.runs.schema import Budget

__all__ = [
    "CostEstimate",
    "RowCost",
    "duration",
    "estimate",
    "fit",
    "parse_duration",
    "reduction_lines",
    "rough_seconds",
]

LEAST_IMAGES = 16
LEAST_SHARE = 0.1
"""A budget reduces images to `LEAST_IMAGES` first, then iterations and queries to this share of what was asked."""

WORTH_SAYING = 60.0
"""Seconds from which a run says at its start how long it will take."""

_PROBE_IMAGES = 8  # on a CPU, where the time grows with the images; a GPU is probed by a whole batch
_GROWTH = 3  # of the second batch that probes an attack over the first, which does one iteration
_LONG_CALL = 2.0  # seconds
_SAFETY = 0.9
_BACKWARD = 3  # a gradient evaluates a purifier's network once more, and twice as much for the products


def estimate(bench: Bench, say: Callable[[str], None] = lambda _: None) -> CostEstimate:
    """Probes every row: clean rows by one small batch, attacks by two at 1 and 3 of their iterations, from which a
    straight line goes on.

    Images that leave an attack early make the run cheaper than this.
    """
    images = min(len(bench.x), _PROBE_IMAGES if bench.device.type == "cpu" else bench.settings.batch_size)
    before = max(peak_memory(bench.device).values()) if bench.device.type == "cpu" else 0
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a few steps on a few images: the run will say what matters
        # the first call is slow
        bench.evaluate(
            bench.rows[-1] if bench.rows[-1].attack_config is None else _shortened(bench, bench.rows[-1], 1),
            slice(0, 1),
        )
        for row in bench.rows:
            rows.append(_probe(bench, row, images))
            say(f"probed {row.model_name}, attack {row.attack_name}")
    peaks = peak_memory(bench.device)
    if bench.device.type == "cpu":
        growth = (peaks["resident_mib"] - before) * min(bench.settings.batch_size, len(bench.x)) / images
        return CostEstimate(tuple(rows), len(bench.x), round(before + growth))
    return CostEstimate(tuple(rows), len(bench.x), peaks["cuda_mib"])


def _probe(bench: Bench, row: Row, images: int) -> RowCost:
    if row.attack_config is None:
        clean = bench.evaluate(row, slice(0, images))
        return RowCost(
            row.model_name, row.attack_name, clean.seconds / images, 0.0, 0.0, 0.0, clean.network_evaluations / images
        )
    short, longer = _shortened(bench, row, 1), _shortened(bench, row, _GROWTH)
    for power in range(2, 10):  # short versions may be equal: an attack has its least length
        if _size(longer) > _size(short):
            break
        longer = _shortened(bench, row, _GROWTH**power)
    sizes = [_size(r) for r in (short, longer, row)]
    first, second = (_numbers(bench.evaluate(r, slice(0, images)), images) for r in (short, longer))
    reach = (sizes[2] - sizes[1]) / (sizes[1] - sizes[0]) if sizes[1] > sizes[0] else 0.0
    seconds, forward, backward, network = (b + max(b - a, 0.0) * reach for a, b in zip(first, second, strict=True))
    variable = min(seconds, max(second[0] - first[0], 0.0) / max(sizes[1] - sizes[0], 1) * sizes[2])
    return RowCost(row.model_name, row.attack_name, seconds - variable, variable, forward, backward, network)


def _shortened(bench: Bench, row: Row, iterations: int) -> Row:
    config = row.attack_config
    assert config is not None
    shortest = min(getattr(config, name) for name in config.lengths)
    return bench.row(row.model_name, config.reduced(min(iterations / shortest, 1.0)))


def _size(row: Row) -> int:
    return row.attack_config.evaluations(row.model_name == "defended").forward  # type: ignore[union-attr]


def _numbers(evaluation: Evaluation, images: int) -> tuple[float, ...]:
    cost = evaluation.attack_cost
    assert cost is not None
    return tuple(
        value / images for value in (evaluation.seconds, cost.forward, cost.backward, evaluation.network_evaluations)
    )


# a run within a time


def fit(settings: BenchConfig, cost: CostEstimate, budget: float, spent: float = 0.0) -> tuple[BenchConfig, Budget]:
    """The settings of a run that takes at most `budget` seconds, `spent` of them gone, and a record of it for the
    summary.

    Fewer images make wider intervals, fewer iterations a weaker attack: images are reduced first, to `LEAST_IMAGES`;
    then all attacks alike.

    Raises:
        ConfigError: even the least run takes longer.
    """
    available = _SAFETY * (budget - spent)
    images = min(cost.images, int(available / max(cost.seconds / cost.images, 1e-9))) if available > 0 else 0
    share = 1.0
    if images < min(cost.images, LEAST_IMAGES):
        images = min(cost.images, LEAST_IMAGES)
        fixed, variable = (sum(getattr(row, name) for row in cost.rows) for name in ("fixed", "variable"))
        share = (available / images - fixed) / max(variable, 1e-9)
        if share < LEAST_SHARE:
            least = images * (fixed + LEAST_SHARE * variable) / _SAFETY + spent
            raise ConfigError(
                f"--budget: {images} images and a tenth of the attacks' iterations take about {duration(least)}, more"
                f" than {duration(budget)}; give that much, or ask for fewer attacks or draws"
            )
    reduced: dict[str, tuple[Any, Any]] = {} if images == cost.images else {"data.images": (cost.images, images)}
    given = settings.model_copy(update={"data": settings.data.model_copy(update={"images": images})})
    if share < 1:
        attacks = tuple(attack.reduced(share) for attack in settings.attacks)
        for old, new in zip(settings.attacks, attacks, strict=True):
            changed = (name for name in new.own if old.own[name] != new.own[name])
            reduced |= {f"attacks.{old.label}.{name}": (old.own[name], new.own[name]) for name in changed}
        given = given.model_copy(update={"attacks": attacks})
    seconds = images * sum(row.fixed + share * row.variable for row in cost.rows)
    return given, Budget(seconds=budget, estimated_seconds=round(seconds, 1), reduced=reduced)


# before every run


def rough_seconds(bench: Bench) -> float:
    """The time of a whole run from its settings and a forward call or two of each model on a few images: within a
    factor of two or so.
    """
    forward: dict[int, float] = {}

    def of(model: nn.Module) -> float:
        if id(model) not in forward:
            forward[id(model)] = _seconds_of_call(bench, model)
        return forward[id(model)]

    total = 0.0
    for row in bench.rows:
        total += bench.settings.draws * of(row.model)
        if row.attack_config is not None and row.attack_model is not None:
            cost = row.attack_config.evaluations(row.model_name == "defended")
            attacks = bench.settings.draws if row.randomness == "fixed" else 1
            total += attacks * (cost.forward + _BACKWARD * cost.backward) * of(row.attack_model)
    return len(bench.x) * total


@torch.no_grad()
def _seconds_of_call(bench: Bench, model: nn.Module) -> float:
    """Of one image, without gradient; in a batch, where that does not take long."""
    seconds = 0.0
    for images in (1, _PROBE_IMAGES if bench.device.type == "cpu" else bench.settings.batch_size):
        if seconds > _LONG_CALL:
            break
        x, keys = bench.x[:images], bench.image_ids[:images].to(bench.device)
        with full_precision(bench.device):
            started = time.monotonic()
            model(x, keys=keys) if takes_keys(model) else model(x)
            if bench.device.type == "cuda":
                torch.cuda.synchronize(bench.device)
        seconds = (time.monotonic() - started) / len(x)
    return seconds
