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
        network: called as `network(x, labels)` with `x` (b, c, h, w) and `labels` (b,) equal to `time_scale * t + time_offset`. Where it returns
            more than c channels (a learned variance), the first c are its prediction.
        schedule: the forward process that the network was trained on.
        prediction: what the network returns: the "noise" n, the "score" -n/sigma, the clean image "x0", or "v" = alpha n - sigma x0
            (Salimans & Ho 2022, arXiv 2202.00512).
        image_shape: (channels, height, width) of the training images, None where unknown. Channels are checked by purifiers; height and
            width may differ where the network takes other sizes.
        time_scale: factor from t to the network's time label (999 for score_sde; 1000 for chains of 1000 steps counted from 0).
        time_offset: added to the label (-1 for such chains: label k belongs to t = (k + 1) / 1000).
        floor_labels: labels are rounded down to integers, in float32, as DiffPure does with guided-diffusion networks. For parity with its
            numbers only: neighbouring times then share a label, and the rounding error of t decides which.
        t_max: the largest t that the network was trained on; purifiers refuse a t_star beyond it.
        metadata: provenance, kept as it is.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: Prediction = "noise",
        image_shape: tuple[int, int, int] | None = None,
        time_scale: float = 1.0,
        time_offset: float = 0.0,
        floor_labels: bool = False,
        t_max: float = 1.0,
        metadata: dict[str, Any] | None = None,
    ):
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction={prediction!r} is not one of {', '.join(get_args(Prediction))}")
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
        self.time_offset = time_offset
        self.floor_labels = floor_labels
        self.t_max = t_max
        self.metadata = metadata or {}

    def forward(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The network's own output at time `t`: a float, or (b,).

        `x` is (b, c, h, w), distributed like alpha(t) x_0 + sigma(t) n; the result has its shape.
        """
        if self.floor_labels:
            labels = (self.time_scale * torch.as_tensor(t, dtype=torch.float32, device=x.device) + self.time_offset).floor().to(x.dtype).expand(len(x))
        elif isinstance(t, Tensor):
            labels = self.time_scale * t + self.time_offset
        else:
            labels = torch.full((len(x),), self.time_scale * t + self.time_offset, dtype=x.dtype, device=x.device)
        return self.network(x, labels)[:, : x.shape[1]]

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
