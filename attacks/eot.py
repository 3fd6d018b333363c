"""Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397): gradients and losses averaged over a model's draws."""

import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from attacks.losses import Loss
from attacks.randomness import mix


def takes_keys(model: nn.Module) -> bool:
    """Whether `model.forward` has a parameter `keys`: (b,) int64 that fix the randomness of each image."""
    return "keys" in inspect.signature(model.forward).parameters


def call(model: nn.Module, x: Tensor, keys: Tensor) -> Tensor:
    """Logits of `x`, under `keys` where the model takes keys."""
    return model(x, keys=keys) if takes_keys(model) else model(x)


def eot_gradient(model: nn.Module, x: Tensor, y: Tensor, keys: Tensor, loss: Loss, draws: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Gradient in `x` of the mean loss over `draws` draws, and that mean.

    Draws are batched with images, as many as fit into calls of `batch_size` rows.

    Args:
        model: images in [0, 1] -> logits.
        x: (b, c, h, w).
        y: (b,) int64 labels.
        keys: (b,) int64; draw j of an image is a function of its key and j.
        loss: per-image loss.
        draws: number of draws.
        batch_size: largest number of rows of one call of the model.

    Returns:
        gradient (b, c, h, w) and mean loss (b,), detached.
    """
    gradient, mean = torch.zeros_like(x), x.new_zeros(len(x))
    for images, which in _calls(len(x), draws, batch_size):
        inputs = x[images].detach().requires_grad_()
        with torch.enable_grad():
            losses = _losses(model, inputs, y[images], keys[images], loss, which)
            (part,) = torch.autograd.grad(losses.sum(), inputs)
        gradient[images] += part / draws
        mean[images] += losses.detach().sum(0) / draws
    return gradient, mean


@torch.no_grad()
def eot_loss(model: nn.Module, x: Tensor, y: Tensor, keys: Tensor, loss: Loss, draws: int, batch_size: int) -> Tensor:
    """(b,): the mean loss over `draws` draws, without gradients; arguments as for `eot_gradient`."""
    mean = x.new_zeros(len(x))
    for images, which in _calls(len(x), draws, batch_size):
        mean[images] += _losses(model, x[images], y[images], keys[images], loss, which).sum(0) / draws
    return mean


def _losses(model: nn.Module, x: Tensor, y: Tensor, keys: Tensor, loss: Loss, which: range) -> Tensor:
    """(draws, b): the losses of the draws `which`, in one call of the model."""
    k = len(which)
    draw_keys = torch.cat([mix(keys, draw) for draw in which])
    return loss(call(model, x.repeat(k, 1, 1, 1), draw_keys), y.repeat(k)).reshape(k, len(x)).to(x.dtype)


def _calls(count: int, draws: int, batch_size: int) -> Iterator[tuple[slice, range]]:
    """(images, draws) of each call: several draws of all images where they fit, else some images of one draw.

    Sums over draws then run in a fixed order, which keeps results repeatable on GPUs.
    """
    together = max(1, batch_size // count)
    for first in range(0, draws, together):
        for start in range(0, count, batch_size):
            yield slice(start, start + batch_size), range(first, min(first + together, draws))
