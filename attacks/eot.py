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

    All draws of all images are one long batch, cut into calls of `batch_size` rows.

    Args:
        model: images in [0, 1] -> logits.
        x: (b, c, h, w).
        y: (b,) int64 labels.
        keys: (b,) int64; draw j of an image is a function of its key and j.
        loss: per-image loss.
        draws: number of draws.
        batch_size: rows of one call of the model.

    Returns:
        gradient (b, c, h, w) and mean loss (b,), detached.
    """
    gradient, mean = torch.zeros_like(x), x.new_zeros(len(x))
    for rows, row_keys in _chunks(keys, draws, batch_size):
        inputs = x[rows].detach().requires_grad_()
        with torch.enable_grad():
            losses = loss(call(model, inputs, row_keys), y[rows])
            (chunk,) = torch.autograd.grad(losses.sum(), inputs)
        gradient.index_add_(0, rows, chunk / draws)
        mean.index_add_(0, rows, losses.detach().to(x.dtype) / draws)
    return gradient, mean


@torch.no_grad()
def eot_loss(model: nn.Module, x: Tensor, y: Tensor, keys: Tensor, loss: Loss, draws: int, batch_size: int) -> Tensor:
    """(b,): the mean loss over `draws` draws, without gradients; arguments as for `eot_gradient`."""
    mean = x.new_zeros(len(x))
    for rows, row_keys in _chunks(keys, draws, batch_size):
        mean.index_add_(0, rows, loss(call(model, x[rows], row_keys), y[rows]).to(x.dtype) / draws)
    return mean


def _chunks(keys: Tensor, draws: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, keys of those rows' draws) in pieces of `batch_size`, image by image."""
    images = torch.arange(len(keys), device=keys.device).repeat_interleave(draws)
    draw = torch.arange(draws, device=keys.device).repeat(len(keys))
    yield from zip(images.split(batch_size), mix(keys[images], draw).split(batch_size), strict=True)
