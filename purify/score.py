"""One network and what it predicts, seen as score, predicted noise or denoised image.

Everything here is on the diffusion's scale: images in the range that the network was trained on, [-1, 1] unless it says otherwise, at t = 0.
"""

import copy
import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from purify.schedules import LinearVP, Schedule

Prediction = Literal["noise", "score", "x0", "v"]
LabelRounding = Literal["floor", "nearest"]


class ScoreModel(nn.Module):
    """A noise-conditional network with its schedule and its parametrisation.

    Args:
        network: called as `network(x, labels)` with `x` (b, c, h, w) and `labels` (b,) as `time_label` says, or with `classes` as
            `network(x, labels, class_labels)` with `class_labels` (b,) int64. Where it returns more than c channels (a learned variance), the first c
            are its prediction.
        schedule: the forward process that the network was trained on, for images in `value_range`.
        prediction: what the network returns: the "noise" n, the "score" -n/sigma, the clean image "x0", or "v" = alpha n - sigma x0
            (Salimans & Ho 2022, arXiv 2202.00512).
        image_shape: (channels, height, width) of the training images, None where unknown. Channels are checked by purifiers; height and
            width may differ where the network takes other sizes.
        value_range: (lowest, highest) pixel of the training images.
        time_label: what labels are: "t" for `time_scale * t + time_offset`, or "sigma" for the noise-to-signal ratio sigma(t) / alpha(t) (score_sde's VE
            networks, EDM).
        time_scale: factor from t to the network's time label (999 for score_sde; 1000 for chains of 1000 steps counted from 0).
        time_offset: added to the label (-1 for such chains: label k belongs to t = (k + 1) / 1000).
        label_rounding: None, "nearest" for networks that look their noise levels up (score_sde's discrete VE ones), or "floor": `time_scale * t` in float32,
            rounded down, without `time_offset`, as DiffPure has it with guided-diffusion networks. For parity with its numbers only: neighbouring times then
            share a label, and the rounding error of t decides which.
        t_max: the largest t that the network was trained on, by default the schedule's; purifiers refuse a t_star beyond it.
        classes: number of classes of a class-conditional network, else None. Such a model works once `with_class` has chosen one.
        metadata: provenance, kept as it is.

    Raises:
        ValueError: an argument out of range or unknown.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: Prediction = "noise",
        image_shape: tuple[int, int, int] | None = None,
        time_scale: float = 1.0,
        time_label: Literal["t", "sigma"] = "t",
        time_offset: float = 0.0,
        label_rounding: LabelRounding | None = None,
        t_max: float | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
        classes: int | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction={prediction!r} is not one of {', '.join(get_args(Prediction))}")
        if time_label not in ("t", "sigma"):
            raise ValueError(f"time_label={time_label!r} is not one of t, sigma")
        t_max = schedule.t_max if t_max is None else t_max
        if not 0 < t_max < float("inf"):
            raise ValueError(f"t_max must be a positive number, got {t_max}")
        if time_scale == 0 or not math.isfinite(time_scale):
            raise ValueError(f"time_scale must be a number other than 0, got {time_scale}")
        if image_shape is not None and (len(image_shape) != 3 or min(image_shape) < 1):
            raise ValueError(f"image_shape must be (channels, height, width), got {image_shape}")
        if len(value_range) != 2 or not -math.inf < value_range[0] < value_range[1] < math.inf:
            raise ValueError(f"value_range must be (lowest, highest), got {value_range}")
        if classes is not None and classes < 1:
            raise ValueError(f"classes must be a positive number of classes, or None, got {classes}")
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.image_shape = image_shape
        self.time_scale = time_scale
        self.time_label = time_label
        self.time_offset = time_offset
        self.label_rounding = self._checked_rounding(label_rounding)
        self.t_max = t_max
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.classes = classes
        self.class_label: int | None = None
        self.metadata = metadata or {}

    def with_class(self, label: int) -> "ScoreModel":
        """The model of images of one class, sharing this one's network. Raises ValueError for a label that the network does not have."""
        if self.classes is None:
            raise ValueError(f"with_class({label!r}): the network is not class-conditional")
        if not isinstance(label, int) or not 0 <= label < self.classes:
            raise ValueError(f"with_class({label!r}): the network has classes 0 to {self.classes - 1}")
        model = copy.copy(self)
        model.class_label = label
        return model

    def with_label_rounding(self, label_rounding: LabelRounding | None) -> "ScoreModel":
        """The model with its labels rounded, see the constructor, sharing this one's network. Raises ValueError as the constructor does."""
        model = copy.copy(self)
        model.label_rounding = self._checked_rounding(label_rounding)
        return model

    def _checked_rounding(self, label_rounding: LabelRounding | None) -> LabelRounding | None:
        if label_rounding not in (None, *get_args(LabelRounding)):
            raise ValueError(f"label_rounding={label_rounding!r} is not one of None, {', '.join(get_args(LabelRounding))}")
        if self.time_label == "sigma" and label_rounding is not None:
            raise ValueError('label_rounding goes with time_label="t"; labels of "sigma" are not counted')
        return label_rounding

    def check_class(self) -> None:
        """Raises ValueError where the network is class-conditional and no class is chosen."""
        if self.classes is not None and self.class_label is None:
            raise ValueError(f"the score network is class-conditional, with {self.classes} classes: choose one by score.with_class(label)")

    def from_unit(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> the diffusion's scale."""
        low, high = self.value_range
        return images * (high - low) + low

    def to_unit(self, x: Tensor) -> Tensor:
        """The diffusion's scale -> images in about [0, 1]."""
        low, high = self.value_range
        return (x - low) / (high - low)

    def time_of_vp(self, t: float) -> float:
        """The time of this model with as much noise for its signal as `LinearVP()` has at `t` on images in [-1, 1]; DiffPure's t* are such times.

        Never less than 1e-5: VE processes start with some noise.
        """
        vp, (low, high) = LinearVP(), self.value_range
        return max(self.schedule.time_of(vp.sigma(t) / vp.alpha(t) * (high - low) / 2), 1e-5)

    def forward(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The network's own output at time `t`: a float, or (b,).

        `x` is (b, c, h, w), distributed like alpha(t) x_0 + sigma(t) n; the result has its shape.

        Raises:
            ValueError: a class-conditional network without a class.
        """
        self.check_class()
        arguments = (x, self._labels(x, t))
        if self.class_label is not None:
            arguments += (torch.full((len(x),), self.class_label, dtype=torch.int64, device=x.device),)
        return self.network(*arguments)[:, : x.shape[1]]

    def _labels(self, x: Tensor, t: float | Tensor) -> Tensor:
        """(b,): what the network calls the time `t`."""
        label: float | Tensor
        if self.time_label == "sigma":
            t = t.double() if isinstance(t, Tensor) else t
            label = self.schedule.sigma(t) / self.schedule.alpha(t)
        elif self.label_rounding == "floor":
            single = (self.time_scale * torch.as_tensor(t, dtype=torch.float32)).floor()
            label = single if isinstance(t, Tensor) else float(single)
        else:
            label = self.time_scale * t + self.time_offset
            if self.label_rounding == "nearest":
                label = label.round() if isinstance(label, Tensor) else round(label)
        if isinstance(label, Tensor):
            return label.to(x.dtype)
        return torch.full((len(x),), label, dtype=x.dtype, device=x.device)

    def noise(self, x: Tensor, t: float | Tensor) -> Tensor:
        """E[n | x_t]: the predicted noise, unit scale."""
        output = self(x, t)
        if self.prediction == "noise":
            return output
        alpha, sigma = self._marginal(t)
        if self.prediction == "score":
            return -sigma * output
        if self.prediction == "x0":
            return (x - alpha * output) / sigma
        return (sigma * x + alpha * output) / (alpha**2 + sigma**2)

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        """grad log p_t(x) = -E[n | x_t] / sigma(t)."""
        if self.prediction == "score":
            return self(x, t)
        _, sigma = self._marginal(t)
        return self.noise(x, t) / -sigma

    def denoised(self, x: Tensor, t: float | Tensor) -> Tensor:
        """E[x_0 | x_t], by Tweedie's formula; on the scale of x_0, not clamped."""
        alpha, sigma = self._marginal(t)
        if self.prediction == "x0":
            return self(x, t)
        if self.prediction == "v":
            return (alpha * x - sigma * self(x, t)) / (alpha**2 + sigma**2)
        return (x - sigma * self.noise(x, t)) / alpha

    def target(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """What the network should return for x_t = alpha(t) x0 + sigma(t) noise: the regression target of training."""
        alpha, sigma = self._marginal(t)
        match self.prediction:
            case "noise":
                return noise
            case "score":
                return noise / -sigma
            case "x0":
                return x0
            case _:
                return alpha * noise - sigma * x0

    def diffuse(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """x_t = alpha(t) x0 + sigma(t) noise: a draw from the marginal at t, for standard normal `noise` of the shape of `x0`."""
        alpha, sigma = self._marginal(t)
        return alpha * x0 + sigma * noise

    def _marginal(self, t: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
        """alpha and sigma as floats, or as (b, 1, 1, 1) for a tensor of times."""
        if not isinstance(t, Tensor):
            return self.schedule.alpha(float(t)), self.schedule.sigma(float(t))
        wide = t.double().reshape(-1, 1, 1, 1)
        dtype = next((p.dtype for p in self.network.parameters()), t.dtype)
        return self.schedule.alpha(wide).to(dtype), self.schedule.sigma(wide).to(dtype)

    def extra_repr(self) -> str:
        shown = f"schedule={self.schedule}, prediction={self.prediction!r}, image_shape={self.image_shape}, t_max={self.t_max}"
        return shown if self.classes is None else f"{shown}, classes={self.classes}, class_label={self.class_label}"
