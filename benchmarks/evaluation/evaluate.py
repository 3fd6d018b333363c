"""The measurement: arrays in, numbers and intervals out.

An attack makes one adversarial example per image, with draws of its own; the deployed model then judges that fixed
example by `draws` fresh draws. With fixed randomness the attacker knows the noise instead: each draw is a deterministic
model, attacked and judged on its own.

A prediction is the largest logit, NaN counting as the smallest. Where no logit is finite there is none: such a draw is
`UNDEFINED`, not right, and counted apart, as it shows a broken model, not an attack that works.
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

from attacks.attack import gives_verdict
from attacks.cost import Cost, count_cost
from attacks.expectation import takes_keys
from attacks.inputs import check_inputs
from benchmarks.evaluation.precision import full_precision
from benchmarks.evaluation.statistics import Estimate, bootstrap_mean, wilson
from benchmarks.evaluation.targets import Target, choose_targets
from purify.defences.fixed_randomness import FixedRandomness
from purify.defences.votes import plurality
from purify.noise import Purpose, derive_keys, noise_keys
from purify.purifiers import Purifier
from purify.score.model import ScoreModel

Attack = Callable[..., Tensor]
"""attack(model, x, y, keys=, progress=) -> x_adv, see `attacks.PGD`. One that judges by itself has a method
`with_verdict`, see `attacks.AutoAttack`.
"""

Randomness = Literal["fresh", "fixed"]

ATTACK_DRAW = 2**32 - 1
"""The number of the draw whose keys go to the attack (with fixed randomness: minus that of the draw attacked);
evaluation draws count from 0, so the two never meet.
"""

UNDEFINED = -1
"""The prediction of an image without a finite logit; equals no label."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        predictions: (n, draws) int64, on the CPU: the label of every draw, or `UNDEFINED`.
        labels: (n,) int64.
        x_adv: (n, c, h, w), on the CPU: the images judged (the clean ones without an attack; with fixed randomness,
            those of draw 0).
        seconds: wall time.
        network_evaluations: images that went through the score network, recomputation for gradients included.
        warnings: what was warned of meanwhile, for instance dead gradients.
        randomness: "fresh" or "fixed", see `evaluate`.
        own_verdict: (n, k) bool: which images an attack that judges by itself (AutoAttack) counts as right, by attack;
            else None.
        attack_cost: images that the attack sent through the attacked model, forward and backward; None where it was not
            counted.
        targets: (n, draws) int64: the classes that a targeted attack sought; else None.
    """

    predictions: Tensor
    labels: Tensor
    x_adv: Tensor
    seconds: float
    network_evaluations: int
    warnings: tuple[str, ...] = ()
    randomness: Randomness = "fresh"
    own_verdict: Tensor | None = None
    attack_cost: Cost | None = None
    targets: Tensor | None = None

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
        """The vote of all draws right, a tie counting as wrong; Wilson interval. Empty with fixed randomness: its draws
        see different images.
        """
        if self.randomness == "fixed":
            return {}
        votes = plurality(self.predictions - UNDEFINED) + UNDEFINED  # an undefined draw votes for no class
        return {self._draws: wilson(int((votes == self.labels).sum()), len(self.labels))}

    @property
    def undefined(self) -> int:
        """How many of the n x draws predictions are `UNDEFINED`."""
        return int((self.predictions == UNDEFINED).sum())

    @property
    def reached(self) -> Estimate | None:
        """Mean over draws of the share of images that are given the class that a targeted attack sought; bootstrap
        interval over images.
        """
        return (
            None
            if self.targets is None
            else bootstrap_mean((self.predictions == self.targets).double().mean(1).numpy())
        )

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
        own, targets = (
            None if getattr(parts[0], name) is None else torch.cat([getattr(p, name) for p in parts])
            for name in ("own_verdict", "targets")
        )
        costs = [p.attack_cost for p in parts if p.attack_cost is not None]
        cost = Cost(sum(c.forward for c in costs), sum(c.backward for c in costs)) if len(costs) == len(parts) else None
        spent = sum(p.seconds for p in parts), sum(p.network_evaluations for p in parts)
        return Evaluation(*tensors, *spent, warned, parts[0].randomness, own, cost, targets)


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
        _check_noise_can_be_fixed(model, attack_model)
    image_ids = torch.arange(len(x)) if image_ids is None else image_ids.cpu()
    if image_ids.shape != (len(x),):
        raise ValueError(f"image_ids must have shape ({len(x)},), got {tuple(image_ids.shape)}")
    check_inference_mode(model)
    for each in {id(m): m for m in (model, attack_model or model)}.values():
        _check_keys_arrive(each)
    parts = []
    for rows in torch.arange(len(x)).split(batch_size):
        batch = _Batch(
            x[rows], y[rows], image_ids[rows], draws, seed, target, _part(progress, int(rows[0]), len(rows), len(x))
        )
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
    logits = model(images, keys=keys) if takes_keys(model) else model(images)
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


def check_inference_mode(model: nn.Module) -> None:
    batch_dependent = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    names = [name for name, module in model.named_modules() if module.training and isinstance(module, batch_dependent)]
    if names:
        warnings.warn(
            f"{len(names)} batch-norm or dropout layers are in training mode (first: {names[0]}): call .eval() on the"
            " model",
            stacklevel=3,
        )


def _check_noise_can_be_fixed(model: nn.Module, attack_model: nn.Module | None) -> None:
    for name, module, random in (
        ("model", model, True),
        ("attack_model", attack_model, attack_model is not None and _holds_purifier(attack_model)),
    ):
        if random and not takes_keys(module):  # type: ignore[arg-type]
            raise ValueError(
                f'randomness="fixed" needs {name} to take `keys` in its forward; that of {type(module).__name__}'
                " does not"
            )


def _holds_purifier(model: nn.Module) -> bool:
    return any(isinstance(module, Purifier) for module in model.modules())


def _check_keys_arrive(model: nn.Module) -> None:
    if not takes_keys(model) and _holds_purifier(model):
        message = (
            f"{type(model).__name__}.forward has no parameter `keys`, so the purifier inside draws fresh noise at every"
            " call"
        )
        warnings.warn(f"{message}: results depend on the batch; give it `keys=None` and pass them on", stacklevel=3)


@contextmanager
def count_network_evaluations(*models: nn.Module) -> Iterator[Callable[[], int]]:
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
