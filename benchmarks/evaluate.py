"""The measurement: arrays in, numbers and intervals out.

An attack makes one adversarial example per image, with draws of its own; the deployed model then judges that fixed example by `draws`
fresh draws. With fixed randomness the attacker knows the noise instead: each draw is a deterministic model, attacked and judged on its own.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attacks.checks import check_inputs
from attacks.eot import call, takes_keys
from benchmarks.runs import full_precision
from benchmarks.statistics import Estimate, bootstrap_mean, wilson
from purify.defense import FixedRandomness, plurality
from purify.noise import Purpose, derive_keys, noise_keys
from purify.purifiers import Purifier
from purify.score import ScoreModel

Attack = Callable[..., Tensor]
"""attack(model, x, y, keys=, progress=) -> x_adv, see `attacks.PGD`. One that judges by itself has a method `with_verdict`, see `attacks.AutoAttack`."""

Randomness = Literal["fresh", "fixed"]

ATTACK_DRAW = 2**32 - 1
"""The number of the draw whose keys go to the attack (with fixed randomness: minus that of the draw attacked); evaluation draws count from 0, so the
two never meet.
"""


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        predictions: (n, draws) int64, on the CPU: the label of every draw.
        labels: (n,) int64.
        x_adv: (n, c, h, w), on the CPU: the images judged (the clean ones without an attack; with fixed randomness, those of draw 0).
        seconds: wall time.
        network_evaluations: images that went through the score network, recomputation for gradients included.
        warnings: what was warned of meanwhile, for instance dead gradients.
        randomness: "fresh" or "fixed", see `evaluate`.
        own_verdict: (n, k) bool: which images an attack that judges by itself (AutoAttack) counts as right, by attack; else None.
    """

    predictions: Tensor
    labels: Tensor
    x_adv: Tensor
    seconds: float
    network_evaluations: int
    warnings: tuple[str, ...] = ()
    randomness: Randomness = "fresh"
    own_verdict: Tensor | None = None

    @property
    def right(self) -> Tensor:
        """(n, draws) bool."""
        return self.predictions == self.labels[:, None]

    @property
    def per_image(self) -> Tensor:
        """(n,) float64: each image's accuracy over the draws."""
        return self.right.double().mean(1)

    @cached_property
    def single(self) -> Estimate:
        """Mean over draws of the accuracy of one draw; bootstrap interval over images."""
        return bootstrap_mean(self.per_image.numpy())

    @property
    def worst_of(self) -> dict[int, Estimate]:
        """All draws right; Wilson interval."""
        return {self._draws: wilson(int(self.right.all(1).sum()), len(self.labels))}

    @property
    def majority(self) -> dict[int, Estimate]:
        """The vote of all draws right, a tie counting as wrong; Wilson interval. Empty with fixed randomness: its draws see different images."""
        if self.randomness == "fixed":
            return {}
        return {self._draws: wilson(int((plurality(self.predictions) == self.labels).sum()), len(self.labels))}

    @property
    def own(self) -> Estimate | None:
        """The accuracy that the attack's own verdict claims; bootstrap interval over images."""
        return None if self.own_verdict is None else bootstrap_mean(self.own_verdict.double().mean(1).numpy())

    @property
    def _draws(self) -> int:
        return self.predictions.shape[1]

    @staticmethod
    def join(parts: "list[Evaluation]") -> "Evaluation":
        """One evaluation of all images of `parts`."""
        tensors = (torch.cat([getattr(p, name) for p in parts]) for name in ("predictions", "labels", "x_adv"))
        warned = tuple(text for p in parts for text in p.warnings)
        own = None if parts[0].own_verdict is None else torch.cat([p.own_verdict for p in parts])  # type: ignore[misc]
        cost = sum(p.seconds for p in parts), sum(p.network_evaluations for p in parts)
        return Evaluation(*tensors, *cost, warned, parts[0].randomness, own)


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
    image_ids: Tensor | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measures a model, attacked or not.

    Args:
        model: images in [0, 1] -> logits, judged as deployed; called as `model(x, keys=...)` where its `forward` takes keys.
        x: (n, c, h, w), floating point, in [0, 1].
        y: (n,) int64 labels.
        attack: makes the adversarial examples; None measures clean images.
        draws: evaluation draws per image.
        seed: of all keys. For a model that takes keys and an attack that works by image (`attacks.PGD`) the result is a function of (seed, image
            id), not of the batch.
        attack_model: what the attack differentiates, where it is not `model` (a surrogate, the bare classifier, another gradient mode).
        randomness: "fresh": the attack does not know the noise of the draws that judge it. "fixed": attacker and defence share it: each draw is
            the deterministic model `purify.FixedRandomness(model, key of the draw)`, attacked anew and judged once, at `draws` times the cost.
            What "fixed" leaves of the accuracy does not come from randomness alone. The images of a draw share its noise: intervals, which are over
            images, hold for these noises.
        image_ids: (n,) int64, default 0 .. n - 1: identities of the images, for their keys.
        batch_size: images of one call of the attack and of the model.
        progress: progress(done, total) in images.

    Raises:
        ValueError: bad images, labels or settings, before any work starts; NaN logits.
    """
    check_inputs(x, y)
    if draws < 1 or batch_size < 1:
        raise ValueError(f"draws and batch_size must be positive integers, got {draws} and {batch_size}")
    if randomness not in get_args(Randomness):
        raise ValueError(f"randomness={randomness!r} is not one of {', '.join(get_args(Randomness))}")
    if randomness == "fixed":
        _check_noise_can_be_fixed(model, attack_model)
    image_ids = torch.arange(len(x)) if image_ids is None else image_ids.cpu()
    if image_ids.shape != (len(x),):
        raise ValueError(f"image_ids must have shape ({len(x)},), got {tuple(image_ids.shape)}")
    _check_inference_mode(model)
    for each in {id(m): m for m in (model, attack_model or model)}.values():
        _check_keys_arrive(each)
    parts = []
    for rows in torch.arange(len(x)).split(batch_size):
        batch = _Batch(x[rows], y[rows], image_ids[rows], draws, seed, _part(progress, int(rows[0]), len(rows), len(x)))
        parts.append(_measured(randomness, model, attack_model or model, attack, batch))
        if progress is not None:
            progress(int(rows[-1]) + 1, len(x))
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
    progress: Callable[[int, int], None] | None

    def keys(self, draw: int) -> Tensor:
        return noise_keys(self.seed, self.ids, draw).to(self.images.device)


Judged = tuple[list[Tensor], Tensor, Tensor | None]
"""The labels of every draw, the images judged, and the attack's own verdict (n, k)."""


def _measured(randomness: Randomness, model: nn.Module, attack_model: nn.Module, attack: Attack | None, batch: _Batch) -> Evaluation:
    """One batch, with its cost and its warnings."""
    judge = _judge_fresh if randomness == "fresh" else _judge_fixed
    started, device = time.monotonic(), batch.images.device
    with _count_network_evaluations(model, attack_model) as count, full_precision(device), warnings.catch_warnings(record=True) as caught:
        predictions, images, own = judge(model, attack_model, attack, batch)
    texts = tuple(str(warning.message) for warning in caught)
    for text in texts:
        warnings.warn(text, stacklevel=3)
    stacked = torch.stack(predictions, dim=1).cpu()
    seconds = time.monotonic() - started
    return Evaluation(stacked, batch.labels.cpu(), images.detach().cpu(), seconds, count(), texts, randomness, None if own is None else own.cpu())


def _judge_fresh(model: nn.Module, attack_model: nn.Module, attack: Attack | None, batch: _Batch) -> Judged:
    """One adversarial example for each image, judged by fresh draws."""
    images, own = _attacked(attack, attack_model, batch, ATTACK_DRAW, batch.progress)
    return [_predict(model, images, batch.keys(draw)) for draw in range(batch.draws)], images, own


def _judge_fixed(model: nn.Module, attack_model: nn.Module, attack: Attack | None, batch: _Batch) -> Judged:
    """Each draw a deterministic model: attacked, then judged by itself."""
    predictions, verdicts, first = [], [], batch.images
    for draw in range(batch.draws):
        key = fixed_key(batch.seed, draw)
        fixed = FixedRandomness(model, key)
        fixed_attack_model = FixedRandomness(attack_model, key) if takes_keys(attack_model) else attack_model
        progress = None if batch.progress is None else partial(_later, batch.progress, draw, batch.draws)
        images, own = _attacked(attack, fixed_attack_model, batch, ATTACK_DRAW - draw, progress)
        predictions.append(_predict(fixed, images, batch.keys(draw)))
        first = images if draw == 0 else first
        verdicts += [] if own is None else [own]
    return predictions, first, torch.cat(verdicts, dim=1) if verdicts else None


def _attacked(attack: Attack | None, model: nn.Module, batch: _Batch, draw: int, progress: Callable[[int, int], None] | None) -> tuple[Tensor, Tensor | None]:
    """Adversarial images, and the attack's own verdict (n, 1) where it has one."""
    if attack is None:
        return batch.images, None
    if hasattr(attack, "with_verdict"):
        images, right = attack.with_verdict(model, batch.images, batch.labels, keys=batch.keys(draw), progress=progress)
        return images, right[:, None]
    return attack(model, batch.images, batch.labels, keys=batch.keys(draw), progress=progress), None


def _later(progress: Callable[[int, int], None], part: int, parts: int, done: int, total: int) -> None:
    """The progress of one of several equal parts, as that of the whole."""
    progress(part * total + done, parts * total)


@torch.no_grad()
def _predict(model: nn.Module, images: Tensor, keys: Tensor) -> Tensor:
    logits = call(model, images, keys)
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"the model must return logits of shape ({len(images)}, classes), got {tuple(logits.shape)}")
    if logits.isnan().any():
        raise ValueError(f"the model returns NaN for {int(logits.isnan().any(1).sum())} of {len(images)} images: its accuracy is undefined")
    return logits.argmax(1)


def _part(progress: Callable[[int, int], None] | None, first: int, count: int, total: int) -> Callable[[int, int], None] | None:
    """An attack's progress as a part of the whole, in images."""
    if progress is None:
        return None
    return lambda done, of: progress(first + int(count * done / of * 0.99), total)


def _check_inference_mode(model: nn.Module) -> None:
    batch_dependent = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    names = [name for name, module in model.named_modules() if module.training and isinstance(module, batch_dependent)]
    if names:
        warnings.warn(f"{len(names)} batch-norm or dropout layers are in training mode (first: {names[0]}): call .eval() on the model", stacklevel=3)


def _check_noise_can_be_fixed(model: nn.Module, attack_model: nn.Module | None) -> None:
    for name, module, random in (("model", model, True), ("attack_model", attack_model, attack_model is not None and _holds_purifier(attack_model))):
        if random and not takes_keys(module):  # type: ignore[arg-type]
            raise ValueError(f'randomness="fixed" needs {name} to take `keys` in its forward; that of {type(module).__name__} does not')


def _holds_purifier(model: nn.Module) -> bool:
    return any(isinstance(module, Purifier) for module in model.modules())


def _check_keys_arrive(model: nn.Module) -> None:
    if not takes_keys(model) and _holds_purifier(model):
        message = f"{type(model).__name__}.forward has no parameter `keys`, so the purifier inside draws fresh noise at every call"
        warnings.warn(f"{message}: results depend on the batch; give it `keys=None` and pass them on", stacklevel=3)


@contextmanager
def _count_network_evaluations(*models: nn.Module) -> Iterator[Callable[[], int]]:
    """Counts the images that go through the score networks of `models`."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += len(output)

    scores = {id(m): m for model in models for m in model.modules() if isinstance(m, ScoreModel)}
    handles = [score.register_forward_hook(count) for score in scores.values()]
    try:
        yield lambda: total
    finally:
        for handle in handles:
            handle.remove()
