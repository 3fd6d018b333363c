"""Likelihood maximisation (Chen et al., ICML 2024, arXiv 2305.15241, "Robust classification via a single diffusion
model").
"""

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from purify import gradients
from purify.checks import check_count, check_positive
from purify.gradients import GradientMode
from purify.noise import Purpose, Stage, derive_keys, uniform
from purify.purifiers.base import Purifier, check_gradient
from purify.score.model import ScoreModel
from purify.score.smoothing import smoothing_time
from purify.solvers import Solver
from purify.solvers.base import normals

_DECAYS = (0.9, 0.999)
_EPSILON = 1e-8


class Likelihood(Purifier):
    """Moves the image within an Linf ball to where a diffusion model finds it likelier: the first half of the robust
    diffusion classifier.

    Every step estimates the diffusion loss E |E[x_0 | x_t] - x_0|^2 by one draw of noise at one noise level, uniform in
    [sigma_min, sigma_max], and descends by Adam. The second half is `purify.DiffusionClassifier`; any classifier will
    do.

    Defaults: 5 steps of 0.1 and levels from 0.4 to 0.6 are the authors' code; so is Adam, with decays 0.9 and 0.999,
    whose 1e-8 is added inside the root here, to have a derivative everywhere. The ball of 8/255 is the paper's; their
    code has none that binds (eta=1 here). A step of Adam is about 0.1 for every pixel, more than the ball: most pixels
    end on its surface, and the gradient of those is that of the image alone.

    Args:
        score: the score model; for a class-conditional classifier to follow, an unconditional one, as theirs.
        steps: steps; each costs one network evaluation and one backward pass.
        gradient: "exact", "backprop" or "bpda"; see `purify.gradients`. The first two take second derivatives of the
            network.
        eta: radius of the ball, on images in [0, 1].
        step_size: of Adam, on images in [-1, 1].
        sigma_min: lowest noise level, as sigma / alpha on images in [-1, 1].
        sigma_max: highest noise level, likewise.
        seed: of the fresh randomness of calls without keys.

    Raises:
        ValueError: an argument out of range or unknown, at construction.
    """

    def __init__(
        self,
        score: ScoreModel,
        steps: int = 5,
        gradient: GradientMode = "exact",
        *,
        eta: float = 8 / 255,
        step_size: float = 0.1,
        sigma_min: float = 0.4,
        sigma_max: float = 0.6,
        seed: int = 0,
    ):
        super().__init__(score, seed)
        check_count(steps=steps)
        check_gradient(gradient, has_adjoint=False)
        check_positive(eta=eta, step_size=step_size)
        low, high = score.value_range
        self.half_width = (high - low) / 2
        if not 0 < sigma_min <= sigma_max < math.inf:
            raise ValueError(
                f"sigma_min and sigma_max must be noise levels with 0 < sigma_min <= sigma_max, got {sigma_min} and"
                f" {sigma_max}"
            )
        for name, level in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
            smoothing_time(score, level / 2, f"half of {name}")  # the network must know both
        self.steps, self.gradient = steps, gradient
        self.eta, self.step_size, self.sigma_min, self.sigma_max = eta, step_size, sigma_min, sigma_max

    def purify(self, x: Tensor, keys: Tensor) -> Tensor:
        """See `Purifier.purify`."""
        return gradients.solve(_Adam(self), lambda image: image, x, keys, self.gradient)


class _Adam(Solver):
    """The steps; a state is the image and Adam's two averages, along the channels."""

    guided = True

    def __init__(self, settings: Likelihood):
        self.settings = settings
        self.steps = settings.steps

    def begin(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x), torch.zeros_like(x)], dim=1)

    def step(self, index: int, state: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        assert image is not None
        x, first, second = state.chunk(3, dim=1)
        own = derive_keys(keys, index, 0, Purpose.ROUND)
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
            slope = torch.func.grad(lambda y: self.loss(y, own).sum())(x)
        first, second = (
            decay * average + (1 - decay) * new
            for decay, average, new in zip(_DECAYS, (first, second), (slope, slope * slope), strict=True)
        )
        mean, square = (
            average / (1 - decay ** (index + 1)) for decay, average in zip(_DECAYS, (first, second), strict=True)
        )
        settings = self.settings
        moved = x - settings.step_size * settings.half_width * mean / (square + _EPSILON**2).sqrt()
        radius = settings.eta * 2 * settings.half_width
        return torch.cat([image + (moved - image).clamp(-radius, radius), first, second], dim=1)

    def end(self, state: Tensor) -> Tensor:
        return state.chunk(3, dim=1)[0]

    def loss(self, x: Tensor, keys: Tensor) -> Tensor:
        """(b,): one draw of the diffusion loss of each image, the mean over its pixels."""
        settings, score = self.settings, self.settings.score
        level = settings.sigma_min + (settings.sigma_max - settings.sigma_min) * uniform(keys, Purpose.TIME)
        t = score.schedule.time_of(level * settings.half_width)
        error = score.denoised(score.diffuse(x, normals(keys, Stage.LOSS, 0, x), t), t) - x
        return error.square().flatten(1).mean(1)
