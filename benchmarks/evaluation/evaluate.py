"""The measurement: arrays in, numbers and intervals out.

An attack makes one adversarial example per image, with draws of its own; the deployed model then judges that fixed
example by `draws` fresh draws. With fixed randomness the attacker knows the noise instead: each draw is a deterministic
model, attacked and judged on its own.

A prediction is the largest logit, NaN counting as the smallest. Where no logit is finite there is none: such a draw is
`UNDEFINED`, not right, and counted apart, as it shows a broken model, not an attack that works.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn

from attacks.attack import gives_verdict
from attacks.cost import count_cost
from attacks.expectation import takes_keys
from attacks.inputs import check_inputs
from benchmarks.evaluation.checks import (
    check_inference_mode,
    check_keys_arrive,
    check_noise_can_be_fixed,
    count_network_evaluations,
)
from benchmarks.evaluation.precision import full_precision
from benchmarks.evaluation.result import UNDEFINED, Evaluation, Randomness
from benchmarks.evaluation.targets import Target, choose_targets
from purify.defences.fixed_randomness import FixedRandomness
from purify.noise import Purpose, derive_keys, noise_keys

__all__ = ["ATTACK_DRAW", "UNDEFINED", "Attack", "Evaluation", "Randomness", "evaluate", "fixed_key"]

Attack = Callable[..., Tensor]
"""attack(model, x, y, keys=, progress=) -> x_adv, see `attacks.PGD`. One that judges by itself has a method
`with_verdict`, see `attacks.AutoAttack`.
"""

ATTACK_DRAW = 2**32 - 1
"""The number of the draw whose keys go to the attack (with fixed randomness: minus that of the draw attacked);
evaluation draws count from 0, so the two never meet.
"""


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack | None = None,
    draws: int = 8,
    seed: int = 0,
    *,
    attack_model: nn.Module | None = None,
    randomness: Randomness = "fresh",
    target: Target | None = None,
    image_ids: Tensor | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measures a model, attacked or not.

    Args:
        model: images in [0, 1] -> logits, judged as deployed; called as `model(x, keys=...)` where its `forward` takes
            keys.
        x: (n, c, h, w), floating point, in [0, 1].
        y: (n,) int64 labels.
        attack: makes the adversarial examples; None measures clean images.
        draws: evaluation draws per image.
        seed: of all keys. For a model that takes keys and an attack that works by image (`attacks.PGD`) the result is a
            function of (seed, image id), not of the batch.
        attack_model: what the attack differentiates, where it is not `model` (a surrogate, the bare classifier, another
            gradient mode).
        randomness: "fresh": the attack does not know the noise of the draws that judge it. "fixed": attacker and
            defence share it: each draw is the deterministic model `purify.FixedRandomness(model, key of the draw)`,
            attacked anew and judged once, at `draws` times the cost. What "fixed" leaves of the accuracy does not come
            from randomness alone. The images of a draw share its noise: intervals, which are over images, hold for
            these noises.
        target: what a targeted attack seeks, see `benchmarks.evaluation.targets.choose_targets`; None: any wrong class.
            Accuracy is that of the true labels either way.
        image_ids: (n,) int64, default 0 .. n - 1: identities of the images, for their keys.
        batch_size: images of one call of the attack and of the model.
        progress: progress(done, total) in images.

    Raises:
        ValueError: bad images, labels or settings, before any work starts.

    Warns (UserWarning) of images whose logits are NaN.
    """
    check_inputs(x, y)
    if draws < 1 or batch_size < 1:
        raise ValueError(f"draws and batch_size must be positive integers, got {draws} and {batch_size}")
    if randomness not in get_args(Randomness):
        raise ValueError(f"randomness={randomness!r} is not one of {', '.join(get_args(Randomness))}")
    if randomness == "fixed":
        check_noise_can_be_fixed(model, attack_model)
    image_ids = torch.arange(len(x)) if image_ids is None else image_ids.cpu()
    if image_ids.shape != (len(x),):
        raise ValueError(f"image_ids must have shape ({len(x)},), got {tuple(image_ids.shape)}")
    check_inference_mode(model)
    for each in {id(m): m for m in (model, attack_model or model)}.values():
        check_keys_arrive(each)
    parts = []
    for first in range(0, len(x), batch_size):
        end = min(first + batch_size, len(x))
        rows = slice(first, end)
        batch = _Batch(
            x[rows], y[rows], image_ids[rows], draws, seed, target, _part(progress, first, end - first, len(x))
        )
        parts.append(_measured(randomness, model, attack_model or model, attack, batch))
        if progress is not None:
            progress(end, len(x))
    return Evaluation.join(parts)


def fixed_key(seed: int, draw: int) -> int:
    """The key of a draw with fixed randomness, the same for all images."""
    return int(derive_keys(torch.zeros(1, dtype=torch.int64), draw, seed, Purpose.FIXED))


@dataclass(frozen=True)
class _Batch:
    images: Tensor
    labels: Tensor
    ids: Tensor
    draws: int
    seed: int
    target: Target | None
    progress: Callable[[int, int], None] | None

    def keys(self, draw: int) -> Tensor:
        return noise_keys(self.seed, self.ids, draw).to(self.images.device)


@dataclass(frozen=True)
class _Attacked:
    """What an attack made of a batch: images, its own verdict (n, 1) where it has one, and the classes (n, 1) that it
    sought.
    """

    images: Tensor
    own: Tensor | None = None
    targets: Tensor | None = None


Judged = tuple[list[Tensor], list[_Attacked]]
"""The logits of every draw, and the attacks that they judge: one of all draws, or one of each."""


def _measured(
    randomness: Randomness, model: nn.Module, attack_model: nn.Module, attack: Attack | None, batch: _Batch
) -> Evaluation:
    """One batch, with its cost and its warnings."""
    judge = _judge_fresh if randomness == "fresh" else _judge_fixed
    started, device = time.monotonic(), batch.images.device
    with (
        count_cost() as cost,
        count_network_evaluations(model, attack_model) as count,
        full_precision(device),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always", UserWarning)  # they belong to the result, whatever the caller shows
        logits, attacked = judge(model, attack_model, attack, batch)
        predictions = _labels(torch.stack(logits, dim=1)).cpu()
    texts = tuple(dict.fromkeys(str(warning.message) for warning in caught))
    for text in texts:
        warnings.warn(text, stacklevel=3)
    images, own, targets = (
        attacked[0].images.detach().cpu(),
        _together([a.own for a in attacked]),
        _together([a.targets for a in attacked]),
    )
    targets = None if targets is None else targets.expand_as(predictions).contiguous()
    seconds = time.monotonic() - started
    return Evaluation(predictions, batch.labels.cpu(), images, seconds, count(), texts, randomness, own, cost, targets)


def _together(columns: list[Tensor | None]) -> Tensor | None:
    """(n, 1) each -> (n, k), or None where there are none."""
    return None if columns[0] is None else torch.cat(columns, dim=1).cpu()  # type: ignore[arg-type]


def _judge_fresh(model: nn.Module, attack_model: nn.Module, attack: Attack | None, batch: _Batch) -> Judged:
    """One adversarial example for each image, judged by fresh draws."""
    attacked = _attacked(attack, attack_model, batch, ATTACK_DRAW, batch.progress)
    return [_logits(model, attacked.images, batch.keys(draw)) for draw in range(batch.draws)], [attacked]


def _judge_fixed(model: nn.Module, attack_model: nn.Module, attack: Attack | None, batch: _Batch) -> Judged:
    """Each draw a deterministic model: attacked, then judged by itself."""
    logits, each = [], []
    for draw in range(batch.draws):
        key = fixed_key(batch.seed, draw)
        fixed = FixedRandomness(model, key)
        fixed_attack_model = FixedRandomness(attack_model, key) if takes_keys(attack_model) else attack_model
        progress = None if batch.progress is None else partial(_later, batch.progress, draw, batch.draws)
        each.append(_attacked(attack, fixed_attack_model, batch, ATTACK_DRAW - draw, progress))
        logits.append(_logits(fixed, each[-1].images, batch.keys(draw)))
    return logits, each


def _attacked(
    attack: Attack | None, model: nn.Module, batch: _Batch, draw: int, progress: Callable[[int, int], None] | None
) -> _Attacked:
    if attack is None:
        return _Attacked(batch.images)
    keys = batch.keys(draw)
    if gives_verdict(attack):
        images, right = attack.with_verdict(model, batch.images, batch.labels, keys=keys, progress=progress)
        return _Attacked(images, right[:, None])
    if batch.target is None:
        return _Attacked(attack(model, batch.images, batch.labels, keys=keys, progress=progress))
    targets = choose_targets(batch.target, model, batch.images, batch.labels, keys)
    return _Attacked(
        attack(model, batch.images, batch.labels, keys=keys, progress=progress, targets=targets), None, targets[:, None]
    )


def _later(progress: Callable[[int, int], None], part: int, parts: int, done: int, total: int) -> None:
    """The progress of one of several equal parts, as that of the whole."""
    progress(part * total + done, parts * total)


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor, keys: Tensor) -> Tensor:
    logits: Tensor = model(images, keys=keys) if takes_keys(model) else model(images)
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"the model must return logits of shape ({len(images)}, classes), got {tuple(logits.shape)}")
    return logits


def _labels(logits: Tensor) -> Tensor:
    """(n, draws, classes) -> (n, draws) int64, with a warning where there are NaN."""
    nan = logits.isnan()
    predictions = logits.where(~nan, -torch.inf).argmax(2).masked_fill(~logits.isfinite().any(2), UNDEFINED)
    if nan.any():
        images, draws, none = (
            int(nan.flatten(1).any(1).sum()),
            int(nan.any(2).sum()),
            int((predictions == UNDEFINED).sum()),
        )
        message = (
            f"the model returns NaN for {images} of {len(logits)} images, in {draws} of {predictions.numel()} draws"
        )
        warnings.warn(
            f"{message}: it was judged by its other logits, and {none} draws without a finite one are undefined",
            stacklevel=2,
        )
    return predictions


def _part(
    progress: Callable[[int, int], None] | None, first: int, count: int, total: int
) -> Callable[[int, int], None] | None:
    """An attack's progress as a part of the whole, in images."""
    if progress is None:
        return None
    return lambda done, of: progress(first + int(count * done / of * 0.99), total)
