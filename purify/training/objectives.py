"""What a network is trained for: denoising score matching on any process and parametrisation, and classification.

All randomness comes from the generator that a loss is called with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify.checks import check_choice
from purify.schedules import Schedule, noise_to_signal, snr
from purify.score.model import ScoreModel
from purify.score.parametrisation import convert

Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
"""loss(model, images, labels, generator) -> scalar; images (b, c, h, w) uint8, labels (b,) int64."""

Weighting = Literal["simple", "likelihood", "edm", "snr", "min-snr"]
"""How much an error at each noise level counts, see `weights`."""

MIN_SNR_LIMIT = 5.0
"""gamma of Hang et al. (2023, arXiv 2303.09556)."""


class Times(Protocol):
    """Which noise levels training sees."""

    @property
    def t_max(self) -> float:
        """The largest time that is drawn."""

    def draw(self, count: int, generator: torch.Generator, schedule: Schedule) -> Tensor:
        """(count,) float32 times of `schedule`, stratified over the batch (Kingma et al. 2021, arXiv 2107.00630) for
        lower variance.
        """


@dataclass(frozen=True)
class TimeSampling:
    """A share `focus_share` of the times uniform on (t_min, focus), the rest uniform on (t_min, t_max)."""

    t_min: float = 1e-5
    t_max: float = 1.0
    focus: float = 0.3
    focus_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.t_min < self.focus <= self.t_max < math.inf:
            raise ValueError(f"need 0 < t_min < focus <= t_max, got {self}")
        if not 0 <= self.focus_share <= 1:
            raise ValueError(f"focus_share must lie in [0, 1], got {self.focus_share}")

    def draw(self, count: int, generator: torch.Generator, schedule: Schedule) -> Tensor:
        """See `Times`."""
        del schedule
        uniform = _stratified(count, generator)
        share = self.focus_share
        focused = self.t_min + (self.focus - self.t_min) * uniform / max(share, 1e-12)
        spread = self.t_min + (self.t_max - self.t_min) * (uniform - share) / max(1 - share, 1e-12)
        return torch.where(uniform < share, focused, spread)


@dataclass(frozen=True)
class LogSNRTimes:
    """The logarithm of the signal-to-noise ratio alpha^2 / sigma^2 uniform between its values at `t_min` and
    `t_max`.
    """

    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_range(self.t_min, self.t_max)

    def draw(self, count: int, generator: torch.Generator, schedule: Schedule) -> Tensor:
        """See `Times`."""
        low, high = _log_ratios(self, schedule)
        return _times_of(low + (high - low) * _stratified(count, generator).double(), self, schedule)


@dataclass(frozen=True)
class LognormalTimes:
    """ln(sigma / alpha) ~ N(mean, std^2), restricted to [t_min, t_max]: the noise sampling of EDM (Karras et al. 2022,
    arXiv 2206.00364, table 1).

    The defaults are EDM's P_mean and P_std, for images in [-1, 1]. EDM itself does not restrict the noise level: on its
    schedule, whose times are noise levels, give t_max=80.
    """

    t_min: float = 1e-5
    t_max: float = 1.0
    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _check_range(self.t_min, self.t_max)
        if not math.isfinite(self.mean) or not 0 < self.std < math.inf:
            raise ValueError(f"mean must be a number and std a positive one, got mean={self.mean}, std={self.std}")

    def draw(self, count: int, generator: torch.Generator, schedule: Schedule) -> Tensor:
        """See `Times`."""
        low, high = torch.special.ndtr((_log_ratios(self, schedule) - self.mean) / self.std)
        normal = torch.special.ndtri(low + (high - low) * _stratified(count, generator).double())
        return _times_of(self.mean + self.std * normal, self, schedule)


def _stratified(count: int, generator: torch.Generator) -> Tensor:
    """(count,) float32 in [0, 1): one in each of `count` equal pieces of the circle."""
    return (torch.rand(1, generator=generator) + torch.arange(count) / count) % 1


def _log_ratios(times: "LogSNRTimes | LognormalTimes", schedule: Schedule) -> Tensor:
    """(2,) float64: ln(sigma / alpha) at t_min and t_max."""
    return noise_to_signal(schedule, torch.tensor([times.t_min, times.t_max], dtype=torch.float64)).log()


def _times_of(log_ratios: Tensor, times: "LogSNRTimes | LognormalTimes", schedule: Schedule) -> Tensor:
    """float32 times with these ln(sigma / alpha); neither rounding nor an infinite logarithm leads out of [t_min,
    t_max].
    """
    low, high = _log_ratios(times, schedule)
    return schedule.time_of(log_ratios.clamp(low, high).exp()).clamp(times.t_min, times.t_max).float()


def _check_range(t_min: float, t_max: float) -> None:
    if not 0 < t_min < t_max < math.inf:
        raise ValueError(f"need 0 < t_min < t_max, got t_min={t_min}, t_max={t_max}")


def to_network_range(images: Tensor, value_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """uint8 in [0, 255] -> float32 in `value_range`."""
    low, high = value_range
    return images.float() / (255 / (high - low)) + low


def weights(model: ScoreModel, t: Tensor, weighting: Weighting) -> Tensor:
    """w(t) such that w |output - target|^2 is the squared error that `weighting` stands for, whatever the model
    predicts.

    - "simple": of the output itself; for noise prediction Ho et al.'s L_simple (2020, arXiv 2006.11239, eq. 14);
    - "likelihood": g(t)^2 |error of the score|^2, with which the loss bounds the likelihood (Song et al. 2021, arXiv
      2101.09258, eq. 7);
    - "edm": (s^2 + sd^2) / (s sd)^2 |error of the clean image|^2 for s = sigma / alpha and sd the model's `sigma_data`
      (Karras et al. 2022, arXiv 2206.00364, table 1): the error of EDM's raw F;
    - "snr": alpha^2 / sigma^2 |error of the clean image|^2: the error of the noise;
    - "min-snr": the same with a ratio of at most 5 (Hang et al. 2023, arXiv 2303.09556, eq. 8).

    Args:
        model: its parametrisation and schedule count, its network does not.
        t: (b,).
        weighting: see above.

    Returns:
        (b,) float64, on the device of `t`.

    Raises:
        ValueError: an unknown weighting.
    """
    check_weighting(weighting)
    t = t.double()
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    one, none = torch.ones_like(t), torch.zeros_like(t)

    def factor(kind: Literal["noise", "score", "x0", "edm"]) -> Tensor:
        """Error of the prediction `kind` that an error of 1 in the output is: conversions are linear in the output and
        the noisy image.
        """
        return convert(one, none, alpha, sigma, model.prediction, kind, model.sigma_data)

    match weighting:
        case "simple":
            return one
        case "likelihood":
            return (model.schedule.diffusion(t) * factor("score")).square()
        case "edm":
            return factor("edm").square()
        case "snr":
            return factor("noise").square()
    return snr(model.schedule, t).clamp(max=MIN_SNR_LIMIT) * factor("x0").square()


def denoising_loss(model: ScoreModel, x0: Tensor, noise: Tensor, t: Tensor, weighting: Weighting = "simple") -> Tensor:
    """The mean over pixels and images of w(t) |output - target|^2 at x_t = alpha(t) x0 + sigma(t) noise.

    Args:
        model: in whose parametrisation the target is.
        x0: (b, c, h, w), in the model's `value_range`.
        noise: the shape of `x0`, standard normal.
        t: (b,).
        weighting: see `weights`.
    """
    output: Tensor = model(model.diffuse(x0, noise, t), t)
    target = model.target(x0, noise, t)
    output = output.to(torch.promote_types(output.dtype, torch.float32))  # half precision is for the network only
    if weighting == "simple":
        return F.mse_loss(output, target)
    scale = weights(model, t, weighting).to(output.dtype)
    return (scale * (output - target).square().flatten(1).mean(1)).mean()


def denoising_score_matching(times: Times, flip: bool = False, weighting: Weighting = "simple") -> Loss:
    """E w(t) |network(x_t, t) - target|^2 with the target of the model's own parametrisation (Vincent 2011; Song et al.
    2021, arXiv 2011.13456, eq. 7).

    Args:
        times: distribution of t.
        flip: whether each image is mirrored with probability 1/2.
        weighting: see `weights`.

    Raises:
        ValueError: an unknown weighting; and when called, times beyond the model's `t_max`.
    """
    check_weighting(weighting)

    def loss(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del labels
        model = as_score_model(model)
        x0, noise, t = draw_batch(model, images, times, flip, generator)
        return denoising_loss(model, x0, noise, t, weighting)

    return loss


def as_score_model(model: nn.Module) -> ScoreModel:
    """The model itself. Raises ValueError for a module that has no schedule to be trained for."""
    if not isinstance(model, ScoreModel):
        raise ValueError(f"denoising score matching trains a ScoreModel, got {type(model).__name__}")
    return model


def draw_batch(
    model: ScoreModel, images: Tensor, times: Times, flip: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """x0 (b, c, h, w) in the model's `value_range`, noise of its shape and times (b,) for uint8 images; see
    `denoising_score_matching`.
    """
    if times.t_max > model.t_max:
        raise ValueError(f"{times}: t_max lies beyond {model.t_max}, the end of the model's times")
    x0 = to_network_range(images, model.value_range)
    t = times.draw(len(x0), generator, model.schedule).to(x0.device)
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    if flip:
        x0 = _mirrored(x0, generator)
    return x0, noise, t


def check_weighting(weighting: str) -> None:
    """Raises ValueError unless `weighting` is one of `Weighting`."""
    check_choice(get_args(Weighting), weighting=weighting)


def _mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability 1/2."""
    mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def classification(label_smoothing: float = 0.0, shift: int = 2, flip: bool = True) -> Loss:
    """Cross-entropy on images in [0, 1], each shifted by up to `shift` pixels (zero padding) and mirrored with
    probability 1/2.
    """

    def loss(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        x = images.float() / 255
        b, _, h, w = x.shape
        if shift:
            rows, columns = torch.randint(0, 2 * shift + 1, (2, b), generator=generator).to(x.device)
            rows = (rows[:, None] + torch.arange(h, device=x.device))[:, None, :, None]
            columns = (columns[:, None] + torch.arange(w, device=x.device))[:, None, None, :]
            image = torch.arange(b, device=x.device)[:, None, None, None]
            channel = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
            x = F.pad(x, (shift,) * 4)[image, channel, rows, columns]
        if flip:
            x = _mirrored(x, generator)
        return F.cross_entropy(model(x).float(), labels, label_smoothing=label_smoothing)

    return loss
