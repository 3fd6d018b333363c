"""Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397): losses and gradients averaged over a model's
draws.
"""

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attacks.cost import add_cost
from attacks.losses import Loss, margin
from attacks.randomness import draw_keys


def takes_keys(model: Callable[..., Any]) -> bool:
    """Whether a module's `forward`, or a function, has a parameter `keys`: (b,) int64 that fix the randomness of each
    image.
    """
    try:
        return "keys" in inspect.signature(getattr(model, "forward", model)).parameters
    except (TypeError, ValueError):  # built in or traced, without a signature
        return False


def call(model: nn.Module, x: Tensor, keys: Tensor) -> Tensor:
    """Logits of `x`, under `keys` where the model takes keys."""
    logits: Tensor = model(x, keys=keys) if takes_keys(model) else model(x)
    # afterwards: a call that ran out of memory is made again in parts
    add_cost(len(x), torch.is_grad_enabled() and x.requires_grad)
    return logits


def is_random(model: nn.Module, x: Tensor) -> bool:
    """Whether the model's answers are draws: it takes keys, or, seen in two calls on the first image of `x` (b, c, h,
    w), it answers differently.

    The two calls are made once a model, and are not counted as an attack's cost.
    """
    if takes_keys(model):
        return True
    if model not in _random:
        with torch.no_grad():
            first, second = (model(x[:1].clone()) for _ in range(2))  # a model may write to its input
        # more than kernels that add in another order
        _random[model] = not torch.allclose(first, second, rtol=1e-3, atol=1e-4, equal_nan=True)
    return _random[model]


_random: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


class Expectation:
    """A model under attack: mean losses over its draws, and their gradients.

    Draws are batched with images, as many as fit into calls of `batch_size` rows. Where a call runs out of memory it is
    halved, and so are all later ones of that model. Methods take some of the images, by their positions `rows` among
    the labels; draw j of an image is a function of its key and j.

    Args:
        model: images in [0, 1] -> logits.
        labels: (b,) int64.
        draws: of the model in each mean.
        batch_size: largest number of rows of one call of the model.
        targets: (b,) int64, the classes to reach in a targeted attack.
        any_wrong: targets, where given, only steer the losses: the goal is any wrong prediction.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: Tensor,
        draws: int,
        batch_size: int,
        targets: Tensor | None = None,
        any_wrong: bool = False,
    ):
        self.model = model
        self.labels = labels
        self.targets = targets
        self.any_wrong = any_wrong
        self.draws = draws
        self.batch_size = batch_size
        self._classes = 1 + int(torch.stack([labels, labels if targets is None else targets]).max())

    def begin(self) -> None:
        """Called where a run begins: whatever is remembered of earlier gradients is forgotten."""

    def gradient(
        self, x: Tensor, keys: Tensor, loss: Loss, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient in `x` of the mean loss over the draws (n, c, h, w), that mean (n,), and the share of draws that
        reached the goal (n,), all detached.

        Args:
            x: (n, c, h, w).
            keys: (n,) int64.
            loss: per-image loss.
            rows: (n,) int64 positions of these images among the labels; None: all of them.
        """
        gradient, mean, success = torch.zeros_like(x), x.new_zeros(len(x)), x.new_zeros(len(x))

        def part(images: slice, which: range) -> tuple[Tensor, Tensor, Tensor]:
            inputs = x[images].detach().requires_grad_()
            with torch.enable_grad():
                losses, reached = self._evaluate(
                    inputs, keys[images], (loss, self._reached), _part(rows, images), which
                )
                (of_part,) = torch.autograd.grad(losses.sum(), inputs)
            return of_part, losses.detach().sum(0), reached.sum(0)

        for images, (of_part, losses, reached) in self._walk(len(x), self.draws, part):
            gradient[images] += of_part
            mean[images] += losses
            success[images] += reached
        # divided last: a share of all draws is exactly 1
        return gradient / self.draws, mean / self.draws, success / self.draws

    @torch.no_grad()
    def loss(self, x: Tensor, keys: Tensor, loss: Loss, rows: Tensor | None = None, draws: int | None = None) -> Tensor:
        """(n,): the mean loss over `draws` draws, by default the object's own number, without gradients; other
        arguments as for `gradient`.
        """
        return self._mean(x, keys, loss, rows, draws)

    @torch.no_grad()
    def success(self, x: Tensor, keys: Tensor, rows: Tensor | None = None, draws: int | None = None) -> Tensor:
        """(n,): the share of draws in which the attack's goal is reached (misclassified; targeted: the target
        predicted). A NaN does not count.
        """
        return self._mean(x, keys, self._reached, rows, draws)

    @torch.no_grad()
    def logits(self, x: Tensor, keys: Tensor, rows: Tensor | None = None, draws: int | None = None) -> Tensor:
        """(n, classes): the mean logits over the draws; arguments as for `loss`."""
        return self._mean(x, keys, _logits, rows, draws)

    def likely(self, x: Tensor, keys: Tensor, count: int) -> Tensor:
        """(b, at most `count`): the wrong classes of each image, largest mean logit first, from clean images (b, c, h,
        w).
        """
        wrong = self.logits(x, keys).nan_to_num(torch.finfo(x.dtype).min).scatter(1, self.labels[:, None], -torch.inf)
        return wrong.topk(min(count, wrong.shape[1] - 1), dim=1).indices

    def choose(
        self, candidates: Sequence[Tensor], keys: Tensor, loss: Loss, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For each image the candidate of largest mean loss over draws common to all its candidates; NaN is never the
        larger, of equals the first is taken.

        Args:
            candidates: one or more (n, c, h, w).
            keys: (n,) int64.
            loss: per-image loss.
            rows: as for `gradient`.

        Returns:
            (n, c, h, w), its position among the candidates (n,) int64, and its mean loss (n,).
        """
        losses = torch.stack([self.loss(points, keys, loss, rows).nan_to_num(-torch.inf) for points in candidates])
        which = losses.argmax(0)
        image = torch.arange(len(which), device=which.device)
        return torch.stack(tuple(candidates))[which, image], which, losses[which, image]

    def check_logits(self, logits: Tensor, rows: int) -> None:
        """Raises ValueError unless a model's answer to so many rows is logits of all classes that are asked for."""
        if logits.ndim != 2 or len(logits) != rows:
            raise ValueError(f"the model must return logits of shape ({rows}, classes), got {tuple(logits.shape)}")
        if logits.shape[1] < max(self._classes, 2):
            raise ValueError(
                f"the model has {logits.shape[1]} classes, labels and targets go up to {self._classes - 1}"
            )

    def _reached(self, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        """1 where the goal is reached, else 0, also for NaN."""
        return (margin(logits.detach(), labels, None if self.any_wrong else targets) > 0).to(logits.dtype)

    def _mean(self, x: Tensor, keys: Tensor, loss: Loss, rows: Tensor | None, draws: int | None) -> Tensor:
        draws = self.draws if draws is None else draws

        def part(images: slice, which: range) -> Tensor:
            return self._evaluate(x[images], keys[images], (loss,), _part(rows, images), which)[0].sum(0)

        total = None
        for images, values in self._walk(len(x), draws, part):
            total = values.new_zeros(len(x), *values.shape[1:]) if total is None else total
            total[images] += values
        return x.new_zeros(0) if total is None else total / draws

    def _evaluate(
        self, x: Tensor, keys: Tensor, losses: tuple[Loss, ...], rows: Tensor | slice, which: range
    ) -> list[Tensor]:
        """(draws, n, ...) for each loss: the draws `which`, in one call of the model."""
        k = len(which)
        logits = call(self.model, x.repeat(k, 1, 1, 1), torch.cat([draw_keys(keys, draw) for draw in which]))
        self.check_logits(logits, k * len(x))
        labels, targets = self.labels[rows].repeat(k), None if self.targets is None else self.targets[rows].repeat(k)
        return [by_draw(loss(logits, labels, targets), k).to(x.dtype) for loss in losses]

    def _walk(self, count: int, draws: int, part: Callable[[slice, range], Any]) -> Iterator[tuple[slice, Any]]:
        """(images, `part(images, draws)`) of each call, in a fixed order, which keeps sums repeatable."""
        waiting = _calls(count, draws, min(self.batch_size, _fits.get(self.model, self.batch_size)))
        while waiting:
            images, which = waiting[0]
            rows = (images.stop - images.start) * len(which)
            try:
                result = part(images, which)
            except RuntimeError as error:
                if not _is_out_of_memory(error) or rows == 1:
                    raise
                result = None
            if result is not None:
                yield images, result
                del waiting[0]
                continue
            # Outside the `except`: the error holds the failed call's tensors.
            _fits[self.model] = rows // 2
            waiting = [part for call_ in waiting for part in _split(*call_, rows // 2)]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def by_draw(values: Tensor, draws: int) -> Tensor:
    """(draws, n, ...) of values (draws * n, ...), which stand draw by draw."""
    return values.reshape(draws, len(values) // draws, *values.shape[1:])


def _logits(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    return logits


_fits: "weakref.WeakKeyDictionary[nn.Module, int]" = weakref.WeakKeyDictionary()
"""Rows of one call that fit into memory, for models that ran out of it."""


def _is_out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "not enough memory" in str(error)
        or "can't allocate memory" in str(error)
    )


def _calls(count: int, draws: int, batch_size: int) -> list[tuple[slice, range]]:
    """(images, draws) of each call."""
    together = max(1, batch_size // count) if count else 1
    firsts = range(0, draws, together)
    return [
        (slice(start, min(start + batch_size, count)), range(first, min(first + together, draws)))
        for first in firsts
        for start in range(0, count, batch_size)
    ]


def _split(images: slice, which: range, rows: int) -> list[tuple[slice, range]]:
    """The call as it is, or in parts of at most so many rows."""
    if (images.stop - images.start) * len(which) <= rows:
        return [(images, which)]
    if len(which) > 1:
        middle = which.start + len(which) // 2
        halves = [(images, range(which.start, middle)), (images, range(middle, which.stop))]
    else:
        between = (images.start + images.stop) // 2
        halves = [(slice(images.start, between), which), (slice(between, images.stop), which)]
    return [part for half in halves for part in _split(*half, rows)]


def _part(rows: Tensor | None, images: slice) -> Tensor | slice:
    return images if rows is None else rows[images]
