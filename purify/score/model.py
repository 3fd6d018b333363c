"""One network and what it predicts, seen as score, predicted noise or denoised image.

Everything here is on the diffusion's scale: images in the range that the network was trained on, [-1, 1] unless it says
otherwise, at t = 0.
"""

import copy
import math
from typing import Any, get_args

import torch
from torch import Tensor, nn

from purify.checks import check_choice, check_positive
from purify.networks.preconditioning import preconditioning
from purify.schedules import LinearVP, Schedule, Time, noise_to_signal
from purify.score.labels import LabelRounding, TimeLabel, check_rounding, time_label, wide
from purify.score.parametrisation import Prediction, check, convert, from_parts

__all__ = ["LabelRounding", "Prediction", "ScoreModel"]


class ScoreModel(nn.Module):
    """A noise-conditional network with its schedule and its parametrisation.

    Args:
        network: called as `network(x, labels)` with `x` (b, c, h, w) and `labels` (b,) as `time_label` says, or with
            `classes` as `network(x, labels, class_labels)` with `class_labels` (b,) int64. Where it returns more than c
            channels (a learned variance), the first c are its prediction. With `prediction="edm"` it is called with
            c_in x / alpha, and c_noise for labels.
        schedule: the forward process that the network was trained on, for images in `value_range`.
        prediction: what the network returns: the "noise" n, the "score" -n/sigma, the clean image "x0", "v" = alpha n -
            sigma x0, or "edm", the F of EDM's preconditioning; see `purify.score.parametrisation`.
        image_shape: (channels, height, width) of the training images, None where unknown. Channels are checked by
            purifiers; height and width may differ where the network takes other sizes.
        value_range: (lowest, highest) pixel of the training images.
        time_label: what labels are: "t" for `time_scale * t + time_offset`, or "sigma" for the noise-to-signal ratio
            sigma(t) / alpha(t) (score_sde's VE networks, EDM).
        time_scale: factor from t to the network's time label (999 for score_sde; 1000 for chains of 1000 steps counted
            from 0).
        time_offset: added to the label (-1 for such chains: label k belongs to t = (k + 1) / 1000).
        label_rounding: None, "nearest" for networks that look their noise levels up (score_sde's discrete VE ones), or
            "floor": `time_scale * t` in float32, rounded down, without `time_offset`, as DiffPure has it with
            guided-diffusion networks. For parity with its numbers only: neighbouring times then share a label, and the
            rounding error of t decides which.
        t_max: the largest t that the network was trained on, by default the schedule's; purifiers refuse a t_star
            beyond it.
        classes: number of classes of a class-conditional network, else None. Such a model works once `with_class` has
            chosen one.
        metadata: provenance, kept as it is.
        sigma_data: standard deviation of the training images' pixels, for `prediction="edm"` only.
        learned_variance: whether the network returns 2c channels, of which the second half is guided-diffusion's
            learned variance; see `noise_and_variance`.

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
        time_label: TimeLabel = "t",
        time_offset: float = 0.0,
        label_rounding: LabelRounding | None = None,
        t_max: float | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
        classes: int | None = None,
        metadata: dict[str, Any] | None = None,
        sigma_data: float = 0.5,
        learned_variance: bool = False,
    ):
        super().__init__()
        check("prediction", prediction)
        check_choice(get_args(TimeLabel), time_label=time_label)
        t_max = schedule.t_max if t_max is None else t_max
        check_positive(t_max=t_max)
        if time_scale == 0 or not math.isfinite(time_scale):
            raise ValueError(f"time_scale must be a number other than 0, got {time_scale}")
        if image_shape is not None and (len(image_shape) != 3 or min(image_shape) < 1):
            raise ValueError(f"image_shape must be (channels, height, width), got {image_shape}")
        if len(value_range) != 2 or not -math.inf < value_range[0] < value_range[1] < math.inf:
            raise ValueError(f"value_range must be (lowest, highest), got {value_range}")
        if classes is not None and classes < 1:
            raise ValueError(f"classes must be a positive number of classes, or None, got {classes}")
        check_positive(sigma_data=sigma_data)
        if prediction == "edm" and (time_label, time_scale, time_offset, label_rounding) != ("t", 1.0, 0.0, None):
            raise ValueError(
                'prediction="edm" has its own labels, ln(sigma / alpha) / 4: leave out time_label, time_scale,'
                " time_offset and label_rounding"
            )
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.image_shape = image_shape
        self.time_scale = time_scale
        self.time_label = time_label
        self.time_offset = time_offset
        self.label_rounding = check_rounding(label_rounding, time_label, prediction)
        self.t_max = t_max
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.classes = classes
        self.class_label: int | None = None
        self.metadata = metadata or {}
        self.sigma_data = float(sigma_data)
        self.learned_variance = learned_variance

    def with_class(self, label: int) -> "ScoreModel":
        """The model of images of one class, sharing this one's network. Raises ValueError for a label that the network
        does not have.
        """
        if self.classes is None:
            raise ValueError(f"with_class({label!r}): the network is not class-conditional")
        if not isinstance(label, int) or not 0 <= label < self.classes:
            raise ValueError(f"with_class({label!r}): the network has classes 0 to {self.classes - 1}")
        model = self._copy()
        model.class_label = label
        return model

    def with_label_rounding(self, label_rounding: LabelRounding | None) -> "ScoreModel":
        """The model with its labels rounded, see the constructor, sharing this one's network. Raises ValueError as the
        constructor does.
        """
        model = self._copy()
        model.label_rounding = check_rounding(label_rounding, self.time_label, self.prediction)
        return model

    def _copy(self) -> "ScoreModel":
        """A model with the same network, and hooks of its own: a shallow copy alone would share the dictionary of
        hooks, and both would call all of them.
        """
        model = copy.copy(self)
        nn.Module.__init__(model)
        model.network, model.training = self.network, self.training
        return model

    def check_class(self) -> None:
        """Raises ValueError where the network is class-conditional and no class is chosen."""
        if self.classes is not None and self.class_label is None:
            raise ValueError(
                f"the score network is class-conditional, with {self.classes} classes: choose one by"
                " score.with_class(label)"
            )

    def from_unit(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> the diffusion's scale."""
        low, high = self.value_range
        return images * (high - low) + low

    def to_unit(self, x: Tensor) -> Tensor:
        """The diffusion's scale -> images in about [0, 1]."""
        low, high = self.value_range
        return (x - low) / (high - low)

    def check_images(self, x: Tensor) -> None:
        """Raises ValueError unless `x` is a batch of images (b, c, h, w), floating point, of a shape that the network
        takes.
        """
        channels = self.image_shape[0] if self.image_shape else None
        if x.ndim != 4 or (channels is not None and x.shape[1] != channels):
            raise ValueError(f"x must be images of shape (b, {channels or 'c'}, h, w), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"x must be floating point in [0, 1], got {x.dtype}")
        multiple = getattr(self.network, "size_multiple", 1)
        if x.shape[2] % multiple or x.shape[3] % multiple:
            raise ValueError(
                f"x must have a height and width that are multiples of {multiple} for this network, got"
                f" {tuple(x.shape[2:])}"
            )

    def time_of_vp(self, t: Time) -> Time:
        """The time of this model with as much noise for its signal as `LinearVP()` has at `t` on images in [-1, 1];
        DiffPure's t* are such times.

        Never less than 1e-5: VE processes start with some noise.
        """
        low, high = self.value_range
        own = self.schedule.time_of(noise_to_signal(LinearVP(), t) * (high - low) / 2)
        return own.clamp_min(1e-5) if isinstance(own, Tensor) else max(own, 1e-5)

    def noise_level(self, t: float) -> float:
        """sigma(t) / alpha(t) for images in [-1, 1]: what tells times of different processes and ranges of pixels
        apart.
        """
        low, high = self.value_range
        return noise_to_signal(self.schedule, t) * 2 / (high - low)

    def forward(self, x: Tensor, t: float | Tensor, whole: bool = False) -> Tensor:
        """The network's own output at time `t`: a float, or (b,).

        `x` is (b, c, h, w), distributed like alpha(t) x_0 + sigma(t) n; the result has its shape, or with `whole` as
        many channels as the network returns.

        Raises:
            ValueError: a class-conditional network without a class.
        """
        self.check_class()
        arguments = [self._scaled(x, t), self._labels(x, t)]
        if self.class_label is not None:
            arguments.append(torch.full((len(x),), self.class_label, dtype=torch.int64, device=x.device))
        output: Tensor = self.network(*arguments)
        return output if whole else output[:, : x.shape[1]]

    def _scaled(self, x: Tensor, t: float | Tensor) -> Tensor:
        """(b, c, h, w): what the network is given for `x`."""
        if self.prediction != "edm":
            return x
        t = t.double().reshape(-1, 1, 1, 1) if isinstance(t, Tensor) else float(t)
        factor = preconditioning(noise_to_signal(self.schedule, t), self.sigma_data).c_in / self.schedule.alpha(t)
        return x * (factor.to(x.dtype) if isinstance(factor, Tensor) else factor)

    def _labels(self, x: Tensor, t: float | Tensor) -> Tensor:
        """(b,): what the network calls the time `t`."""
        if self.prediction == "edm":
            label = preconditioning(noise_to_signal(self.schedule, wide(t)), self.sigma_data).c_noise
        else:
            label = time_label(
                self.schedule, t, self.time_label, self.time_scale, self.time_offset, self.label_rounding
            )
        if isinstance(label, Tensor):
            return label.to(x.dtype)
        return torch.full((len(x),), label, dtype=x.dtype, device=x.device)

    def noise(self, x: Tensor, t: float | Tensor) -> Tensor:
        """E[n | x_t]: the predicted noise, unit scale."""
        return self._seen_as("noise", self(x, t), x, t)

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        """grad log p_t(x) = -E[n | x_t] / sigma(t)."""
        return self._seen_as("score", self(x, t), x, t)

    def denoised(self, x: Tensor, t: float | Tensor) -> Tensor:
        """E[x_0 | x_t], by Tweedie's formula; on the scale of x_0, not clamped."""
        return self._seen_as("x0", self(x, t), x, t)

    def noise_and_variance(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """The predicted noise, and the learned variance v of an ancestral step, from one evaluation.

        v is the raw output of the network, about in [-1, 1]: the log variance of the step is (v + 1) / 2 of the way
        from DDPM's "small" one, log(beta_t (1 - abar_{t-1}) / (1 - abar_t)), to its "large" one, log(beta_t) (Nichol &
        Dhariwal 2021, arXiv 2102.09672, eq. 15).

        Args:
            x: (b, c, h, w), as for `forward`.
            t: as for `forward`.

        Returns:
            (b, c, h, w) each.

        Raises:
            ValueError: the network has no learned variance, or returns another number of channels than 2c.
        """
        if not self.learned_variance:
            raise ValueError(
                "noise_and_variance: the score model has learned_variance=False; say learned_variance=True for a"
                " network with 2c output channels"
            )
        output, channels = self(x, t, whole=True), x.shape[1]
        if output.shape[1] != 2 * channels:
            raise ValueError(
                f"learned_variance=True needs a network with {2 * channels} output channels for images of {channels},"
                f" got {output.shape[1]}"
            )
        return self._seen_as("noise", output[:, :channels], x, t), output[:, channels:]

    def target(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """What the network should return for x_t = alpha(t) x0 + sigma(t) noise: the regression target of training."""
        return from_parts(x0, noise, *self._marginal(t, x0.dtype), self.prediction, self.sigma_data)

    def diffuse(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """x_t = alpha(t) x0 + sigma(t) noise: a draw from the marginal at t, for standard normal `noise` of the shape
        of `x0`.
        """
        alpha, sigma = self._marginal(t, x0.dtype)
        return alpha * x0 + sigma * noise

    def _seen_as(self, kind: Prediction, output: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        return convert(output, x, *self._marginal(t, x.dtype), self.prediction, kind, self.sigma_data)

    def _marginal(self, t: float | Tensor, dtype: torch.dtype) -> tuple[float | Tensor, float | Tensor]:
        """alpha and sigma as floats, or as (b, 1, 1, 1) of the images' `dtype` for a tensor of times."""
        if not isinstance(t, Tensor):
            return self.schedule.alpha(float(t)), self.schedule.sigma(float(t))
        wide = t.double().reshape(-1, 1, 1, 1)
        return self.schedule.alpha(wide).to(dtype), self.schedule.sigma(wide).to(dtype)

    def extra_repr(self) -> str:
        shown = (
            f"schedule={self.schedule}, prediction={self.prediction!r}, image_shape={self.image_shape},"
            f" t_max={self.t_max}"
        )
        shown += f", sigma_data={self.sigma_data}" if self.prediction == "edm" else ""
        return shown if self.classes is None else f"{shown}, classes={self.classes}, class_label={self.class_label}"
