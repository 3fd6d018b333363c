"""Images as functions of parameters that climb by Adam (Kingma & Ba 2015, arXiv 1412.6980), each image on its own."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_FIRST, _SECOND, _FLOOR = 0.9, 0.999, 1e-12

Parameters = Sequence[Tensor]
"""Tensors (n, ...), one row an image."""


class AdamPath:
    """A `Path` (see `attacks.paths`) whose images are `apply(parameters, x)`; moments, steps and clipping of an image
    depend on that image alone.

    Where `apply` leaves [0, 1] the images are clipped, and the gradient is taken as if they were not: a clip that stops
    gradients would freeze those pixels.

    Args:
        x: (n, c, h, w), the originals.
        parameters: where they begin.
        rates: Adam's step size of each parameter tensor.
        apply: parameters and originals of some images -> their images.
        examine: parameters, originals and images -> what is subtracted from the loss (m,), and (m,) bool: which images
            the threat allows. None: nothing, all.
        constrain: parameters and originals -> the nearest allowed parameters, after every step.
        finish: images and originals -> allowed images, at the end.
        clip: largest norm of an image's gradient in each parameter tensor.
        shared_scale: one second moment for each image instead of one a coordinate, which keeps the direction of the
            first moment.
    """

    def __init__(
        self,
        x: Tensor,
        parameters: Parameters,
        rates: Sequence[float],
        apply: Callable[[Parameters, Tensor], Tensor],
        examine: Callable[[Parameters, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        constrain: Callable[[Parameters, Tensor], Parameters] | None = None,
        finish: Callable[[Parameters, Tensor], Tensor] | None = None,
        clip: float | None = None,
        shared_scale: bool = False,
    ):
        self._x, self._parameters, self._rates = x, [p.detach().clone() for p in parameters], rates
        self._apply, self._examine, self._constrain, self._finish = apply, examine, constrain, finish
        self._clip, self._shared_scale = clip, shared_scale
        self._first, self._second = ([torch.zeros_like(p) for p in self._parameters] for _ in range(2))
        self._steps = 0

    @torch.enable_grad()
    def images(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """As of `Path`."""
        parameters, x = [p[active].requires_grad_() for p in self._parameters], self._x[active]
        images = self._apply(parameters, x)
        penalty, allowed = (
            (None, torch.ones_like(active, dtype=torch.bool))
            if self._examine is None
            else self._examine(parameters, x, images)
        )
        self._graph = parameters, images, penalty
        return images.detach().clamp(0, 1), allowed

    def move(self, active: Tensor, gradient: Tensor) -> None:
        """As of `Path`."""
        parameters, images, penalty = self._graph
        with torch.enable_grad():
            objective = (images * gradient).sum() - (0 if penalty is None else penalty.sum())
            gradients = torch.autograd.grad(objective, parameters)
        del self._graph
        self._steps += 1
        moved: list[Tensor] = []
        for parameter, gradient, first, second, rate in zip(
            parameters, gradients, self._first, self._second, self._rates, strict=True
        ):
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            if self._clip is not None:
                norm = gradient.flatten(1).norm(dim=1).reshape(-1, *[1] * (gradient.ndim - 1))
                gradient = gradient * (self._clip / norm.clamp_min(self._clip))
            square = gradient.square()
            if self._shared_scale:
                square = square.flatten(1).mean(1).reshape(-1, *[1] * (gradient.ndim - 1)).expand_as(gradient)
            first[active] = _FIRST * first[active] + (1 - _FIRST) * gradient
            second[active] = _SECOND * second[active] + (1 - _SECOND) * square
            mean, scale = (
                first[active] / (1 - _FIRST**self._steps),
                (second[active] / (1 - _SECOND**self._steps)).sqrt(),
            )
            moved.append(parameter.detach() + rate * mean / (scale + _FLOOR))
        allowed = moved if self._constrain is None else self._constrain(moved, self._x[active])
        for parameter, of_active in zip(self._parameters, allowed, strict=True):
            parameter[active] = of_active

    @torch.no_grad()
    def finish(self) -> Tensor:
        """As of `Path`."""
        if self._finish is not None:
            return self._finish(self._parameters, self._x)
        return self._apply(self._parameters, self._x).clamp(0, 1)
