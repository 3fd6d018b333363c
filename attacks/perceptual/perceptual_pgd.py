"""Perceptual PGD (Laidlaw et al. 2021, arXiv 2006.12655): the loss is raised under a bound on a distance in
features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.inputs import also_called, check_positive, check_positive_integers
from attacks.paths import attack_along
from attacks.perceptual.feature_distance import FeatureDistance, check_feature_distance
from attacks.randomness import OfSearch, derive, uniform
from attacks.task import Task

_START_SIZE = 0.01  # the paper's standard deviation
_DAMPING = 1e-4


@also_called(steps="iterations")
@dataclass(frozen=True)
class PerceptualPGD(Attack):
    """Steps that raise the mean loss over draws the most for the distance in features that they cost (PPGD, Laidlaw et
    al., Section 4 and Appendix A).

    With J the Jacobian of the features phi and g the gradient of the loss, a step is along (J^T J)^-1 g, found by
    conjugate gradients, and as long as moves phi by the step size. Then the image is brought back into [0, 1] and, by
    bisection along the segment to the original, into the bound, so that no image ever leaves it. (The paper's code
    brings it back by Newton steps, and differentiates the features numerically; here J v is exact, by differentiating
    twice, and J^T J is damped by 1e-4 of its size along g, as features may not see every direction. It takes 5
    conjugate gradient iterations; 20 cost calls of the features alone and raised the loss of a linear model under
    features of two random convolutions by 60 %. It begins with noise; here only restarts do.)

    Args:
        threat: the bound: `FeatureDistance` in the features of a network (the paper: 0.5 in AlexNet's), or
            `lpips_distance`.
        iterations: steps per restart (the paper's evaluations: 40).
        eot: draws of the model per gradient.
        cg_iterations: conjugate gradient iterations per step (published: 5).
        step_size: in the units of |phi(x_adv) - phi(x)|; default twice its bound over the iterations, as published.
        loss: "margin" (as published), "ce" or "dlr".
        restarts: independent runs, the first from the image itself, others from random points near it; the best is kept
            on fresh draws.
        stop_draws: as for `PGD`.
        batch_size: rows (images times draws) of one call of the model, and images of one call of the features.
    """

    threat: FeatureDistance
    iterations: int = 40
    eot: int = 1
    cg_iterations: int = 20
    step_size: float | None = None
    loss: str = "margin"
    restarts: int = 1
    stop_draws: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_feature_distance(self)
        check_positive_integers(self, "cg_iterations")
        check_positive(self, "step_size")

    def run(self, task: Task) -> Tensor:
        """As of `Attack`."""
        step = 2 * self.threat.radius / self.iterations if self.step_size is None else self.step_size

        def path(rows: Tensor, keys: Tensor, restart: int) -> _Steps:
            images = task.x[rows]
            begin = images if task.start is None else task.start[rows]
            if restart:
                noise = 2 * uniform(derive(keys, OfSearch.START), tuple(images.shape[1:]), images.dtype) - 1
                begin = self.threat.project(images + math.sqrt(3) * _START_SIZE * noise, images)
            return _Steps(self.threat, images, begin, step, self.cg_iterations)

        return attack_along(task, self, path)


class _Steps:
    """A `Path` of allowed images."""

    def __init__(self, threat: FeatureDistance, x: Tensor, begin: Tensor, step: float, iterations: int):
        self._threat, self._x, self._points, self._step, self._iterations = threat, x, begin.clone(), step, iterations

    def images(self, active: Tensor) -> tuple[Tensor, Tensor]:
        return self._points[active], torch.ones_like(active, dtype=torch.bool)

    def move(self, active: Tensor, gradient: Tensor) -> None:
        points = self._points[active]
        # Of unit size first: squares of small gradients underflow.
        gradient = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        change = _cheapest(self._threat, points, gradient, self._step, self._iterations).nan_to_num(0.0, 0.0, 0.0)
        self._points[active] = self._threat.project(points + change, self._x[active])

    def finish(self) -> Tensor:
        return self._points


@torch.enable_grad()
def _cheapest(threat: FeatureDistance, x: Tensor, gradient: Tensor, length: float, iterations: int) -> Tensor:
    """The change of images (n, c, h, w) that moves phi by `length` and has the largest product with the gradient, to
    first order.
    """
    x = x.detach().requires_grad_()
    phi = threat.embed(x)
    dual = torch.zeros_like(phi, requires_grad=True)
    (transposed,) = torch.autograd.grad(phi, x, dual, create_graph=True)  # J^T dual, whose derivative in dual is J

    def forward(v: Tensor) -> Tensor:
        return torch.autograd.grad(transposed, dual, v, retain_graph=True)[0].detach()

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(phi, x, forward(v), retain_graph=True)[0].detach() + damping * v

    tiny = torch.finfo(x.dtype).tiny
    damping = (
        _DAMPING
        * (forward(gradient).square().sum(1) / _dot(gradient, gradient).flatten().clamp_min(tiny))[:, None, None, None]
    )
    solution, residual, direction = torch.zeros_like(gradient), gradient, gradient
    size = _dot(residual, residual)
    for _ in range(iterations):
        image = product(direction)
        rate = size / _dot(direction, image).clamp_min(tiny)
        solution, residual = solution + rate * direction, residual - rate * image
        before, size = size, _dot(residual, residual)
        direction = residual + size / before.clamp_min(tiny) * direction
    moved = forward(solution).norm(dim=1)[:, None, None, None]
    # Where features see nothing of a change it is free; [0, 1] alone bounds it.
    farthest = solution.abs().amax((1, 2, 3), keepdim=True).clamp_min(tiny)
    return solution * torch.minimum(length / moved.clamp_min(tiny), 1 / farthest)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(n, 1, 1, 1)."""
    return (a * b).sum((1, 2, 3), keepdim=True)
