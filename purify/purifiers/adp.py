"""ADP, adversarial purification with score-based generative models (Yoon, Hwang & Lee, ICML 2021, arXiv 2106.06041)."""

import torch
from torch import Tensor

from purify import gradients
from purify.checks import check_count, check_not_negative, check_positive
from purify.gradients import GradientMode
from purify.noise import Stage
from purify.purifiers.base import Purifier, check_gradient
from purify.score.model import ScoreModel
from purify.score.smoothing import smoothing_time
from purify.solvers import Solver
from purify.solvers.base import normals

_LARGEST = 0.1


class ADP(Purifier):
    """Noise, then deterministic steps x + alpha g(x) along the score, each as long as the curvature along it allows.

    With a probe x' = x + delta g(x), alpha = lam delta / (1 - <g(x), g(x')> / <g(x), g(x)>), at most 0.1; an image
    whose alpha falls to `stop`, or along whose score the density is not concave, is done. For Gaussian data a step goes
    the share `lam` of the way to the mean.

    g is the score times its noise level, minus the predicted noise, which is what the authors' network returns. Theirs
    is not told a noise level, and keeps its length as the noise falls; a diffusion model is asked at one level
    throughout, by default that of the noise which was added. So the defaults are those of the authors' configuration
    for CIFAR-10 but for `lam`: their 0.05 would leave 0.95^10 = 60 % of the noise here, 0.2 leaves 11 %. They average
    the logits of ten runs: `DefendedClassifier(..., copies=10)`. Images are not clamped between the steps, a clamp
    would hide gradients.

    Args:
        score: the score model.
        steps: the most steps; each costs two network evaluations.
        gradient: "exact", "backprop" or "bpda"; see `purify.gradients`. The first two differentiate the lengths of the
            steps too.
        sigma: standard deviation of the noise, on images in [0, 1].
        level: noise level at which the network is asked, as a standard deviation on images in [0, 1].
        lam: share of the way to the maximum along the score.
        delta: length of the probe, on images in [0, 1].
        stop: smallest alpha, > 0.
        seed: of the fresh randomness of calls without keys.

    Raises:
        ValueError: an argument out of range or unknown, at construction.
    """

    def __init__(
        self,
        score: ScoreModel,
        steps: int = 10,
        gradient: GradientMode = "exact",
        *,
        sigma: float = 0.25,
        level: float = 0.25,
        lam: float = 0.2,
        delta: float = 1e-3,
        stop: float = 1e-3,
        seed: int = 0,
    ):
        super().__init__(score, seed)
        check_count(steps=steps)
        check_gradient(gradient, has_adjoint=False)
        check_not_negative(sigma=sigma)
        check_positive(level=level, lam=lam, delta=delta, stop=stop)
        self.t = smoothing_time(score, level)
        self.steps, self.gradient = steps, gradient
        self.sigma, self.level, self.lam, self.delta, self.stop = sigma, level, lam, delta, stop

    def purify(self, x: Tensor, keys: Tensor) -> Tensor:
        """See `Purifier.purify`."""
        noise = self.sigma * self.width * normals(keys, Stage.FORWARD, 0, x)
        return gradients.solve(_Ascent(self), lambda image: image + noise, x, keys, self.gradient)

    @property
    def width(self) -> float:
        """Of the range of pixels on the diffusion's scale, 1 on [0, 1]."""
        low, high = self.score.value_range
        return high - low


class _Ascent(Solver):
    """The steps; alpha and delta count on [0, 1], states are on the diffusion's scale."""

    def __init__(self, settings: ADP):
        self.settings = settings
        self.steps = settings.steps

    def step(self, index: int, state: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        settings, width = self.settings, self.settings.width
        g = self._direction(state)
        turned = g - self._direction(state + width * settings.delta * g)
        gap = (g * turned).flatten(1).sum(1) / (g * g).flatten(1).sum(1)
        wanted = settings.lam * settings.delta
        alpha = wanted / gap.clamp_min(wanted / _LARGEST)
        alpha = torch.where((gap > 0) & (alpha > settings.stop), alpha, 0)
        return state + width * alpha[:, None, None, None] * g

    def _direction(self, x: Tensor) -> Tensor:
        score, t = self.settings.score, self.settings.t
        return -score.noise(score.schedule.alpha(t) * x, t)
