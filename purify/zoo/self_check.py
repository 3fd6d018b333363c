"""Does a score model denoise at all? Wrong schedules, time labels or parametrisations load without an error and then
purify nothing.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify.noise import Stage, noise_keys, standard_normal
from purify.schedules import EDM, VE, LinearVP, Schedule, SubVP
from purify.score.labels import TimeLabel
from purify.score.model import ScoreModel
from purify.score.parametrisation import Prediction

NOISE_TO_SIGNAL = (0.2, 0.5, 1.0)
"""Noise levels, as sigma / alpha for images in [-1, 1]; DiffPure's t* = 0.1 has 0.33."""

GOOD, PLAUSIBLE = 0.5, 1.0
"""What `error_left` may be at every level: below the first nothing else is looked at, above the second something is
wrong. In between other conventions are tried, and it is wrong if one of them leaves `CLEARLY_LESS` times less.
"""

CLEARLY_LESS = 1.5

_LARGEST_SIDE = 64
_PREDICTIONS: tuple[Prediction, ...] = ("noise", "score", "x0", "v")


class ScoreModelWarning(UserWarning):
    """A score model that loads, but does not denoise."""


def warn_if_implausible(model: ScoreModel, name: str, images: Tensor | None = None) -> None:
    """Warns (`ScoreModelWarning`) where `diagnose` finds something; `name` is what the message calls the model."""
    found = diagnose(model, images)
    if found is not None:
        warnings.warn(f"{name}: {found}", ScoreModelWarning, stacklevel=3)


@torch.no_grad()
def diagnose(model: ScoreModel, images: Tensor | None = None) -> str | None:
    """None where the model denoises plausibly, else a sentence with the measured numbers and the likely mistake.

    Any trained network leaves much less error than a constant multiple of the noisy image at these levels, on images
    like its own and on smooth ones. Where it does not, the usual conventions are tried in place of the model's, and the
    one that does best is named. Conventions that lie close to the right one (999 and 1000 as time scale, VP and sub-VP)
    pass.

    Args:
        model: what to look at; of a class-conditional one, its class or the first.
        images: (n, c, h, w) in [0, 1]; three are used, or the centres of three large ones. Without them, smooth random
            fields, and None where the model does not know its image shape.

    Raises:
        ValueError: images of another shape or range.
    """
    if model.classes is not None and model.class_label is None:
        model = model.with_class(0)
    if images is not None:
        x = _checked(model, images)
    elif model.image_shape is not None:
        x = _example_images(model.image_shape, model.network)
    else:
        return None
    left = error_left(model, x)
    worst = max(left.values(), default=0.0)
    if not all(math.isfinite(share) for share in left.values()):
        return f"the model returns NaN or infinity for {'smooth test images' if images is None else 'the given images'}"
    if worst < GOOD:
        return None
    better = _best_convention(model, x)
    if worst < PLAUSIBLE and (better is None or _mean(left) < CLEARLY_LESS * better[0]):
        return None
    kind = "smooth test images" if images is None else "the given images"
    shown = ", ".join(f"{share:.2g} at sigma/alpha = {level:g}" for level, share in left.items())
    text = (
        f"the model hardly denoises {kind}: its error over that of a constant multiple of the noisy image, at most 0.5"
        f" for most networks, is {shown}. "
    )
    if better is None:
        return (
            text
            + "No usual convention does better: the weights may be untrained, damaged, or of another variant of the"
            " architecture."
        )
    return (
        text
        + f"It is taken for a model with {_described(model)}; with {better[1]} it denoises: the network was probably"
        " trained with those."
    )


def _mean(left: dict[float, float]) -> float:
    """Geometric, for shares may differ by orders of magnitude."""
    return math.exp(sum(math.log(max(share, 1e-12)) for share in left.values()) / len(left))


def error_left(model: ScoreModel, images: Tensor) -> dict[float, float]:
    """|E[x_0 | x_t] - x_0|^2 over that of the best constant multiple of x_t, at each level of `NOISE_TO_SIGNAL` within
    the model's times.

    `images` are (n, c, h, w) in [0, 1]; the levels take turns on them. A constant multiple is the best that can be done
    without looking at neighbours: with the pixels' variance V and noise of variance r^2 for images, it leaves V r^2 /
    (V + r^2).
    """
    low, high = model.value_range
    schedule, parameter = model.schedule, next(model.parameters(), images)
    scaled = {level: level * (high - low) / 2 for level in NOISE_TO_SIGNAL}
    times = {level: schedule.time_of(ratio) for level, ratio in scaled.items()}
    times = {level: t for level, t in times.items() if 0 < t <= model.t_max}
    if not times:
        return {}
    x0 = model.from_unit(images[torch.arange(len(times)) % len(images)]).to(parameter)
    noise = standard_normal(
        noise_keys(0, torch.arange(len(times), device=x0.device), 0), Stage.FORWARD, 0, tuple(x0.shape[1:]), x0.dtype
    )
    t = torch.tensor(list(times.values()), dtype=torch.float64, device=x0.device)
    t = t if x0.dtype == torch.float64 else t.float()
    error = (model.denoised(model.diffuse(x0, noise, t), t) - x0).square().mean((1, 2, 3))
    variance = x0.var((1, 2, 3)).clamp_min(1e-4)
    return {
        level: float(e * (1 / v + 1 / scaled[level] ** 2)) for level, e, v in zip(times, error, variance, strict=True)
    }


def _example_images(shape: tuple[int, int, int], network: nn.Module) -> Tensor:
    """(3, c, h, w) in [0, 1]: smooth random fields, mostly the same in all channels, of the network's size or
    smaller.
    """
    channels, *size = shape
    height, width = _affordable(size, network)
    coarse = standard_normal(noise_keys(1, torch.arange(3), 0), Stage.FORWARD, 0, (channels + 1, 4, 4))
    coarse = coarse[:, :1] + 0.3 * coarse[:, 1:]
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).sigmoid()


def _affordable(size: Sequence[int], network: nn.Module) -> list[int]:
    """Sides that the network takes, at most `_LARGEST_SIDE` where it takes such."""
    multiple = getattr(network, "size_multiple", 1)
    return [max(min(side, _LARGEST_SIDE) // multiple, 1) * multiple for side in size]


def _checked(model: ScoreModel, images: Tensor) -> Tensor:
    """Three of the images, or of their centres where they are large."""
    channels = model.image_shape[0] if model.image_shape else None
    if images.ndim != 4 or not len(images) or (channels is not None and images.shape[1] != channels):
        raise ValueError(f"images must be (n, {channels or 'c'}, h, w), got {tuple(images.shape)}")
    if not images.is_floating_point() or not 0 <= float(images.min()) <= float(images.max()) <= 1:
        raise ValueError(
            f"images must be floating point in [0, 1], got {images.dtype} from {images.min():g} to {images.max():g}"
        )
    height, width = _affordable(images.shape[2:], model.network)
    top, left = max(images.shape[2] - height, 0) // 2, max(images.shape[3] - width, 0) // 2
    return images[:3, :, top : top + height, left : left + width]


def _best_convention(model: ScoreModel, images: Tensor) -> tuple[float, str] | None:
    """Mean share and description of the convention that denoises best among those that do so plausibly."""
    model, best = copy.copy(model), None
    model._modules = {"network": _Once(model.network)}
    for candidate, description in _conventions(model):
        try:
            left = error_left(candidate, images)
        except (RuntimeError, ValueError, IndexError):  # labels that this network does not take
            continue
        if left and max(left.values()) < PLAUSIBLE and (best is None or _mean(left) < best[0]):  # a NaN is not less
            best = (_mean(left), description)
    return best


def _conventions(model: ScoreModel) -> Iterator[tuple[ScoreModel, str]]:
    """The model under its own and the usual schedules, labels, ranges and predictions, and how to say them."""
    own = (model.schedule, model.time_label, model.time_scale, model.time_offset)
    usual: list[tuple[Schedule, TimeLabel, float, float]] = [own]
    usual += [(schedule, "t", scale, 0.0) for schedule in (LinearVP(), SubVP()) for scale in (999.0, 1.0)]
    usual += [(VE(0.01, 50.0), "sigma", 1.0, 0.0), (EDM(), "sigma", 1.0, 0.0)]
    for schedule, label, scale, offset in usual:
        for value_range in ((-1.0, 1.0), (0.0, 1.0)):
            for prediction in _PREDICTIONS:
                changed = copy.copy(model)
                changed.schedule, changed.t_max, changed.label_rounding = schedule, schedule.t_max, None
                changed.time_label, changed.time_scale, changed.time_offset = label, scale, offset
                changed.prediction, changed.value_range = prediction, value_range
                yield changed, _described(changed)


def _described(model: ScoreModel) -> str:
    labels = (
        "time_label='sigma'"
        if model.time_label == "sigma"
        else f"time_scale={model.time_scale:g}, time_offset={model.time_offset:g}"
    )
    return f"schedule={model.schedule}, {labels}, prediction={model.prediction!r}, value_range={model.value_range}"


class _Once(nn.Module):
    """A network that evaluates equal arguments in a row once: conventions that differ in the prediction alone share an
    evaluation.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.last: tuple[tuple[Tensor, ...], Tensor] | None = None

    def forward(self, *arguments: Tensor) -> Tensor:
        if self.last is None or not all(torch.equal(a, b) for a, b in zip(arguments, self.last[0], strict=True)):
            self.last = (arguments, self.network(*arguments))
        return self.last[1]
