"""Spatially transformed adversarial examples (Xiao et al. 2018, arXiv 1801.02612) on the expected loss of a random
model.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.adam import Parameters
from attacks.attack import Attack
from attacks.inputs import also_called, check_positive
from attacks.perceptual.bounded import check_bounded, transform
from attacks.task import Task

_REACH = 2  # how many times epsilon a flow is searched for


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Images whose pixels are fetched, bilinearly, from where the flow points.

    Args:
        x: (n, c, h, w).
        flow: (n, h, w, 2), horizontal then vertical, in the units of an affine grid: the image is 2 wide and 2 high, a
            pixel 2 / w and 2 / h. Places beyond the image's edge are moved onto it; there, half a pixel outside of the
            last pixel's centre, the image has faded half to black.

    Returns:
        (n, c, h, w).
    """
    h, w = x.shape[2:]
    rows, columns = ((2 * torch.arange(size, device=x.device, dtype=x.dtype) + 1) / size - 1 for size in (h, w))
    grid = torch.stack([columns.expand(h, w), rows[:, None].expand(h, w)], -1)
    return F.grid_sample(x, (grid + flow).clamp(-1, 1), padding_mode="zeros", align_corners=False)


def roughness(flow: Tensor) -> Tensor:
    """(n,): the flow loss of Xiao et al. (eq. 4) of flows (n, h, w, 2): over all pixels and their four neighbours, the
    length of the flow's difference.
    """
    total = flow.new_zeros(len(flow))
    for dimension in (1, 2):
        # each pair of neighbours is counted from both
        total = total + 2 * (flow.diff(dim=dimension).square().sum(-1) + 1e-10).sqrt().sum((1, 2))
    return total


@dataclass(frozen=True)
class Flow:
    """Images whose pixels moved by at most `epsilon` in each direction, in the units of an affine grid: the image is 2
    wide, so 0.05 is 0.8 of 32 pixels.

    Args:
        epsilon: largest component of the flow; positive.
    """

    epsilon: float

    def __post_init__(self) -> None:
        check_positive(self, "epsilon")

    @torch.no_grad()
    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(n,): a lower bound on the flow that turns `x` into `x_adv`, tight to 1 %; infinity where none up to 2
        epsilon does.

        A flow cannot be read off two images, but every pixel must lie between the least and the greatest value that its
        channel takes in reach of the flow: the smallest reach for which all pixels do is returned. No image of this
        threat is farther than `epsilon`.
        """
        smallest, largest = x.new_zeros(len(x)), x.new_full((len(x),), _REACH * self.epsilon)
        at_rest = (x_adv - x).abs().flatten(1).amax(1) <= _TOLERANCE
        reachable = _in_reach(x_adv, x, largest)
        while float((largest - smallest).max()) > 0.01 * self.epsilon:
            middle = (smallest + largest) / 2
            inside = _in_reach(x_adv, x, middle)
            smallest, largest = torch.where(inside, smallest, middle), torch.where(inside, middle, largest)
        return torch.where(
            at_rest, torch.zeros_like(smallest), torch.where(reachable, smallest, torch.full_like(smallest, torch.inf))
        )

    def __str__(self) -> str:
        return f"StAdv {self.epsilon:g}"


_TOLERANCE = 1e-5  # of pixels, for rounding


def _in_reach(x_adv: Tensor, x: Tensor, reach: Tensor) -> Tensor:
    """(n,) bool: whether every pixel of `x_adv` lies within what `x` takes in reach (n,) of it: a bilinear image has
    its extremes at pixels and corners.
    """
    low, high = x.clone(), x.clone()
    h, w = x.shape[2:]
    steps = [int(float(reach.max()) * size / 2) for size in (w, h)]
    across, down = ([*range(-most, most + 1), -math.inf, math.inf] for most in steps)
    for right in across:
        for below in down:
            shift = torch.stack(
                [
                    (reach.new_full(reach.shape, 2 * offset / size)).clamp(-reach, reach)
                    for offset, size in ((right, w), (below, h))
                ],
                -1,
            )
            moved = warp(x, shift[:, None, None, :].expand(-1, h, w, -1))
            low, high = torch.minimum(low, moved), torch.maximum(high, moved)
    return ((x_adv >= low - _TOLERANCE) & (x_adv <= high + _TOLERANCE)).flatten(1).all(1)


@also_called(steps="iterations")
@dataclass(frozen=True)
class StAdv(Attack):
    """A flow of at most `bound` that raises the mean loss over draws minus `smoothness` times the flow's roughness, by
    Adam steps clipped to the bound.

    The setting of DiffPure (Nie et al. 2022, arXiv 2205.07460), after Laidlaw & Feizi's code (arXiv 1906.00001): bound
    0.05, 100 steps of 0.01, EOT 20, margin loss, weight 0.0025 / bound, coordinates clipped to the image. Xiao et al.
    themselves set no bound and use L-BFGS.

    Args:
        bound: largest component of the flow, in the units of an affine grid (the image is 2 wide and 2 high).
        iterations: steps per restart.
        eot: draws of the model per gradient.
        step_size: Adam's, in the units of the bound.
        smoothness: weight of `roughness`; default 0.0025 / bound; 0: none.
        loss: "margin", "ce" or "dlr".
        restarts: independent runs, the first from the image itself, others from random shifts; the best is kept on
            fresh draws.
        stop_draws: as for `PGD`.
        batch_size: rows (images times draws) of one call of the model, halved where memory runs out.
    """

    takes_start: ClassVar[bool] = False

    bound: float = 0.05
    iterations: int = 100
    eot: int = 1
    step_size: float = 0.01
    smoothness: float | None = None
    loss: str = "margin"
    restarts: int = 1
    stop_draws: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounded(self)

    @property
    def threat(self) -> Flow:
        """What comes back is allowed by this."""
        return Flow(self.bound)

    def run(self, task: Task) -> Tensor:
        """As of `Attack`, but for `start`: an image does not tell the flow that made it."""
        weight = 0.0025 / self.bound if self.smoothness is None else self.smoothness

        def examine(parameters: Parameters, of: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
            return weight * roughness(parameters[0]), torch.ones(len(of), dtype=torch.bool, device=of.device)

        return transform(
            task,
            self,
            shape=(*task.x.shape[2:], 2),
            shift=(1, 1, 2),
            apply=lambda parameters, of: warp(of, parameters[0]),
            examine=examine,
        )
