"""ReColorAdv (Laidlaw & Feizi 2019, arXiv 1906.00001): one function of colour for all pixels of an image, on the
expected loss of a random model.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.adam import Parameters
from attacks.attack import Attack
from attacks.inputs import also_called, check_positive
from attacks.perceptual.bisection import largest_factor
from attacks.perceptual.bounded import check_bounded, transform
from attacks.task import Task

# linear sRGB to CIE XYZ, white point D65 (IEC 61966-2-1)
_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_WHITE = (0.1978, 0.4683)  # u', v' of D65


def to_luv(rgb: Tensor) -> Tensor:
    """CIE 1976 L*u*v* of sRGB images (n, 3, h, w) in [0, 1], scaled as in the paper's code: (L / 100, (u + 100) / 200,
    (v + 100) / 200).
    """
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp_min(0.04) + 0.055) / 1.055) ** 2.4)
    x, y, z = torch.einsum("ij,njhw->nihw", rgb.new_tensor(_TO_XYZ), linear).unbind(1)
    light = torch.where(y <= (6 / 29) ** 3, (29 / 3) ** 3 * y, 116 * y.clamp_min(1e-4) ** (1 / 3) - 16)
    total = (x + 15 * y + 3 * z).clamp_min(torch.finfo(x.dtype).tiny)
    u, v = 13 * light * (4 * x / total - _WHITE[0]), 13 * light * (9 * y / total - _WHITE[1])
    return torch.stack([light / 100, (u + 100) / 200, (v + 100) / 200], 1)


def to_rgb(luv: Tensor) -> Tensor:
    """The inverse of `to_luv`; colours that sRGB does not hold lie outside [0, 1]."""
    light, u, v = luv[:, 0] * 100, luv[:, 1] * 200 - 100, luv[:, 2] * 200 - 100
    safe = light.clamp_min(1e-6)
    u, v = u / (13 * safe) + _WHITE[0], (v / (13 * safe) + _WHITE[1]).clamp_min(1e-2)
    y = torch.where(light <= 8, light * (3 / 29) ** 3, ((light.clamp_min(1) + 16) / 116) ** 3)
    xyz = torch.stack([y * 9 * u / (4 * v), y, y * (12 - 3 * u - 20 * v) / (4 * v)], 1).clamp(-0.5, 1.5)
    linear = torch.einsum("ij,njhw->nihw", torch.linalg.inv(luv.new_tensor(_TO_XYZ, dtype=torch.float64)).to(luv), xyz)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(0.003) ** (1 / 2.4) - 0.055)


def recolor(x: Tensor, change: Tensor) -> Tensor:
    """Images whose colours, in CIELUV, are moved by a function given on a grid of colours and interpolated trilinearly;
    may leave [0, 1].

    Args:
        x: (n, 3, h, w) sRGB in [0, 1].
        change: (n, 3, grid of v, of u, of L): what is added to (L, u, v), in the scale of `to_luv`.
    """
    luv = to_luv(x)
    places = (2 * luv.clamp(0, 1) - 1).permute(0, 2, 3, 1)[:, None]  # the last dimension of the grid first: L, u, v
    return to_rgb(luv + F.grid_sample(change, places, padding_mode="border", align_corners=True)[:, :, 0])


@dataclass(frozen=True)
class ColorChange:
    """Images whose pixels changed by at most `epsilon` in each of L*, u* and v*, in the scale of `to_luv`.

    That all pixels of one colour change alike is a property of the attack and cannot be seen from this distance.

    Args:
        epsilon: largest change; positive.
    """

    epsilon: float

    def __post_init__(self) -> None:
        check_positive(self, "epsilon")

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(n,): the largest change of a pixel in L*, u* or v*."""
        return (to_luv(x_adv) - to_luv(x)).abs().flatten(1).amax(1)

    def __str__(self) -> str:
        return f"ReColorAdv {self.epsilon:g}"


@also_called(steps="iterations")
@dataclass(frozen=True)
class ReColorAdv(Attack):
    """A smooth function of colour that raises the mean loss over draws, by Adam steps clipped to the bound.

    As published: CIELUV, a grid of 16 x 32 x 32 colours, bound 0.06 in each channel, 100 steps of 0.001, margin loss
    minus 0.0036 / bound times the sum of differences between neighbours of the grid. Colours that leave sRGB are
    clipped; where that moves a pixel beyond the bound, the whole change of its image is shortened at the end (the
    published code clips the grid instead).

    Args:
        bound: largest change of a grid point in each of L*, u* and v*, in the scale of `to_luv`.
        iterations: steps per restart.
        eot: draws of the model per gradient.
        step_size: Adam's, in the units of the bound.
        smoothness: weight of the differences between neighbours; default 0.0036 / bound; 0: none.
        resolution: grid points along L*, u* and v*.
        loss: "margin", "ce" or "dlr".
        restarts: independent runs, the first from the image itself, others from random shifts of all colours; the best
            is kept on fresh draws.
        stop_draws: as for `PGD`.
        batch_size: rows (images times draws) of one call of the model, halved where memory runs out.
    """

    takes_start: ClassVar[bool] = False

    bound: float = 0.06
    iterations: int = 100
    eot: int = 1
    step_size: float = 0.001
    smoothness: float | None = None
    resolution: tuple[int, int, int] = (16, 32, 32)
    loss: str = "margin"
    restarts: int = 1
    stop_draws: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounded(self)
        if len(self.resolution) != 3 or not all(isinstance(points, int) and points >= 2 for points in self.resolution):
            raise ValueError(f"resolution must be three integers from 2, got {self.resolution!r}")

    @property
    def threat(self) -> ColorChange:
        """What comes back is allowed by this."""
        return ColorChange(self.bound)

    def run(self, task: Task) -> Tensor:
        """As of `Attack`, but for `start`: an image does not tell the function that made it.

        Raises:
            ValueError: images that are not RGB.
        """
        channels = task.x.shape[1]
        if channels != 3:
            raise ValueError(
                f"ReColorAdv changes the colours of RGB images, x has {channels} channel{'s' if channels != 1 else ''}:"
                " use StAdv or a norm"
            )
        weight = 0.0036 / self.bound if self.smoothness is None else self.smoothness

        def examine(parameters: Parameters, of: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
            allowed = self.threat.distance(images.detach().clamp(0, 1), of) <= self.bound
            return weight * _roughness(parameters[0]), allowed

        return transform(
            task,
            self,
            shape=(3, *self.resolution[::-1]),
            shift=(3, 1, 1, 1),
            apply=lambda parameters, of: recolor(of, parameters[0]),
            examine=examine,
            finish=self._finish,
        )

    def _finish(self, parameters: Parameters, x: Tensor) -> Tensor:
        def images(factors: Tensor) -> Tensor:
            return recolor(x, factors[:, None, None, None, None] * parameters[0]).clamp(0, 1)

        factors = largest_factor(lambda f: self.threat.distance(images(f), x) <= self.bound, len(x), x)
        return images(factors)


def _roughness(change: Tensor) -> Tensor:
    """(n,): the sum over neighbouring grid points, each pair counted from both sides, of the distance between their
    changes.
    """
    total = change.new_zeros(len(change))
    for dimension in (2, 3, 4):
        total = total + 2 * (change.diff(dim=dimension).square().sum(1) + 1e-10).sqrt().sum((1, 2, 3))
    return total
