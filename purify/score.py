"""One network and what it predicts, seen as score, predicted noise or denoised image.

Everything here is on the diffusion's scale: images in [-1, 1] at t = 0.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from purify.schedules import Schedule

Prediction = Literal["noise", "score", "x0", "v"]


class ScoreModel(nn.Module):
    """A noise-conditional network with its schedule and its parametrisation.

    Args:
        network: called as `network(x, labels)` with `x` (b, c, h, w) and `labels` (b,) as `time_label` says. Where it returns more than c channels (a
            learned variance), the first c are its prediction.
        schedule: the forward process that the network was trained on.
        prediction: what the network returns: the "noise" n, the "score" -n/sigma, the clean image "x0", or "v" = alpha n - sigma x0
            (Salimans & Ho 2022, arXiv 2202.00512).
        image_shape: (channels, height, width) of the training images, None where unknown. Channels are checked by purifiers; height and
            width may differ where the network takes other sizes.
        time_label: what labels are: "t" for `time_scale * t + time_offset`, or "sigma" for the noise-to-signal ratio sigma(t) / alpha(t) (score_sde's VE
            networks, EDM).
        time_scale: factor from t to the network's time label (999 for score_sde; 1000 for chains of 1000 steps counted from 0).
        time_offset: added to the label (-1 for such chains: label k belongs to t = (k + 1) / 1000).
        floor_labels: labels are rounded down to integers, in float32, as DiffPure does with guided-diffusion networks. For parity with its
            numbers only: neighbouring times then share a label, and the rounding error of t decides which.
        t_max: the largest t that the network was trained on, by default the schedule's; purifiers refuse a t_star beyond it.
        metadata: provenance, kept as it is.
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
        floor_labels: bool = False,
        t_max: float | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction={prediction!r} is not one of {', '.join(get_args(Prediction))}")
        if time_label not in ("t", "sigma"):
            raise ValueError(f"time_label={time_label!r} is not one of t, sigma")
        if time_label == "sigma" and floor_labels:
            raise ValueError('floor_labels rounds time_label="t" down; labels of "sigma" are not counted')
        t_max = schedule.t_max if t_max is None else t_max
        for name, value in (("t_max", t_max), ("time_scale", time_scale)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {value}")
        if image_shape is not None and (len(image_shape) != 3 or min(image_shape) < 1):
            raise ValueError(f"image_shape must be (channels, height, width), got {image_shape}")
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.image_shape = image_shape
        self.time_scale = time_scale
        self.time_label = time_label
        self.time_offset = time_offset
        self.floor_labels = floor_labels
        self.t_max = t_max
        self.metadata = metadata or {}

    def forward(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The network's own output at time `t`: a float, or (b,).

        `x` is (b, c, h, w), distributed like alpha(t) x_0 + sigma(t) n; the result has its shape.
        """
        return self.network(x, self._labels(x, t))[:, : x.shape[1]]

    def _labels(self, x: Tensor, t: float | Tensor) -> Tensor:
        """(b,): what the network calls the time `t`."""
        label: float | Tensor
        if self.time_label == "sigma":
            t = t.double() if isinstance(t, Tensor) else t
            label = self.schedule.sigma(t) / self.schedule.alpha(t)
        elif self.floor_labels:
            single = (self.time_scale * torch.as_tensor(t, dtype=torch.float32) + self.time_offset).floor()
            label = single if isinstance(t, Tensor) else float(single)
        else:
            label = self.time_scale * t + self.time_offset
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
        return f"schedule={self.schedule}, prediction={self.prediction!r}, image_shape={self.image_shape}, t_max={self.t_max}"
