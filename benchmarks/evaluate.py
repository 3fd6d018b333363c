"""The measurement: arrays in, numbers and intervals out.

An attack makes one adversarial example per image, with draws of its own; the deployed model then judges that fixed example by `draws`
fresh draws.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from attacks.checks import check_inputs
from attacks.eot import call, takes_keys
from benchmarks.statistics import Estimate, bootstrap_mean, wilson
from purify.defense import plurality
from purify.noise import noise_keys
from purify.purifiers import Purifier
from purify.score import ScoreModel

Attack = Callable[..., Tensor]
"""attack(model, x, y, keys=, progress=) -> x_adv, see `attacks.PGD`."""

ATTACK_DRAW = 2**32 - 1
"""The number of the draw whose keys go to the attack; evaluation draws count from 0, so the two never meet."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        predictions: (n, draws) int64, on the CPU: the label of every draw.
        labels: (n,) int64.
        x_adv: (n, c, h, w), on the CPU: the images judged (the clean ones without an attack).
        seconds: wall time.
        network_evaluations: images that went through the score network, recomputation for gradients included.
        warnings: what was warned of meanwhile, for instance dead gradients.
    """

    predictions: Tensor
    labels: Tensor
    x_adv: Tensor
    seconds: float
    network_evaluations: int
    warnings: tuple[str, ...] = ()

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
        """The vote of all draws right, a tie counting as wrong; Wilson interval."""
        return {self._draws: wilson(int((plurality(self.predictions) == self.labels).sum()), len(self.labels))}

    @property
    def _draws(self) -> int:
        return self.predictions.shape[1]

    @staticmethod
    def join(parts: "list[Evaluation]") -> "Evaluation":
        """One evaluation of all images of `parts`."""
        tensors = (torch.cat([getattr(p, name) for p in parts]) for name in ("predictions", "labels", "x_adv"))
        warned = tuple(text for p in parts for text in p.warnings)
        return Evaluation(*tensors, sum(p.seconds for p in parts), sum(p.network_evaluations for p in parts), warned)


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack | None = None,
    draws: int = 8,
    seed: int = 0,
    *,
    attack_model: nn.Module | None = None,
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
        image_ids: (n,) int64, default 0 .. n - 1: identities of the images, for their keys.
        batch_size: images of one call of the attack and of the model.
        progress: progress(done, total) in images.

    Raises:
        ValueError: bad images, labels or settings, before any work starts; NaN logits.
    """
    parts = list(evaluate_batches(model, x, y, attack, draws, seed, attack_model=attack_model, image_ids=image_ids, batch_size=batch_size, progress=progress))
    return Evaluation.join(parts)


def evaluate_batches(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack | None = None,
    draws: int = 8,
    seed: int = 0,
    *,
    attack_model: nn.Module | None = None,
    image_ids: Tensor | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Evaluation]:
    """`evaluate`, batch by batch, so that a caller can keep what is done; same arguments."""
    check_inputs(x, y)
    if draws < 1 or batch_size < 1:
        raise ValueError(f"draws and batch_size must be positive integers, got {draws} and {batch_size}")
    image_ids = torch.arange(len(x)) if image_ids is None else image_ids.cpu()
    if image_ids.shape != (len(x),):
        raise ValueError(f"image_ids must have shape ({len(x)},), got {tuple(image_ids.shape)}")
    _check_inference_mode(model)
    _check_keys_arrive(model)
    return _batches(model, x, y, attack, draws, seed, attack_model or model, image_ids, batch_size, progress)


def _batches(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack | None,
    draws: int,
    seed: int,
    attack_model: nn.Module,
    image_ids: Tensor,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Evaluation]:
    for rows in torch.arange(len(x)).split(batch_size):
        started = time.monotonic()
        images, labels, ids = x[rows], y[rows], image_ids[rows]
        with _count_network_evaluations(model, attack_model) as count, _full_precision(x.device), warnings.catch_warnings(record=True) as caught:
            if attack is not None:
                keys = noise_keys(seed, ids, ATTACK_DRAW).to(x.device)
                images = attack(attack_model, images, labels, keys=keys, progress=_part(progress, int(rows[0]), len(rows), len(x)))
            labels_of_draws = (_predict(model, images, noise_keys(seed, ids, draw).to(x.device)) for draw in range(draws))
            predictions = torch.stack(list(labels_of_draws), dim=1)
        if progress is not None:
            progress(int(rows[-1]) + 1, len(x))
        texts = tuple(str(warning.message) for warning in caught)
        for text in texts:
            warnings.warn(text, stacklevel=2)
        yield Evaluation(predictions.cpu(), labels.cpu(), images.detach().cpu(), time.monotonic() - started, count(), texts)


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


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No lower precision behind the caller's back, and repeatable kernels: TF32 is cuDNN's default, and autocast may be open."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False), torch.autocast(device.type, enabled=False):
        yield


def _check_inference_mode(model: nn.Module) -> None:
    batch_dependent = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    names = [name for name, module in model.named_modules() if module.training and isinstance(module, batch_dependent)]
    if names:
        warnings.warn(f"{len(names)} batch-norm or dropout layers are in training mode (first: {names[0]}): call .eval() on the model", stacklevel=3)


def _check_keys_arrive(model: nn.Module) -> None:
    if not takes_keys(model) and any(isinstance(module, Purifier) for module in model.modules()):
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
