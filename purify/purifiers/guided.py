"""GDMP, guided diffusion for purification (Wang et al. 2022, arXiv 2205.14969)."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from purify.checks import check_choice, check_count, check_positive
from purify.gradients import GradientMode
from purify.noise import Stage
from purify.purifiers.base import Path, Purifier, check_gradient
from purify.purifiers.chain import chain_times
from purify.purifiers.sequential import stage_keys
from purify.score.model import ScoreModel
from purify.solvers import Ancestral, Levels, Solver
from purify.solvers.base import normals

Guidance = Literal["mse", "ssim", "none"]
Target = Literal["noised", "clean"]
Variance = Literal["small", "large"]


class GDMP(Purifier):
    """Passes of diffusion to t_star and ancestral steps back that are pulled towards the image which is purified.

    A step from x_t adds v s grad(-D(x_t, y_t)) to its mean, with v its variance and the image y, by default diffused to
    t with fresh noise. D is the mean squared error, or minus the structural similarity. The published strength, which
    is used here, is s = 3 scale sigma_t / (2 epsilon alpha_t) with the attack's budget epsilon on [0, 1]. The pull is
    differentiated in full, in the state and in the image.

    The defaults are those of the published configuration for CIFAR-10 (36 steps, 4 passes, MSE, scale 60000, epsilon
    8/255). ImageNet's: t_star=0.18, steps=45, passes=1, epsilon=4/255, scale=1000, target="clean", guidance="ssim" or
    "mse", with a learned variance, which is not offered.

    D is the mean over the pixels of each image, on the diffusion's scale [-1, 1]. The published code takes the mean
    over a whole batch, so that its pull shrinks with the batch: with batches of 100 it is that of scale=600 here. A
    step goes the share 2 v s / (c h w) of the way to y_t for the MSE, 0.2 for the first one of the default on 3 x 32 x
    32 pixels; beyond 2 it overshoots and grows, so smaller images and larger t_star need a smaller scale. Other
    differences: the predicted clean image is not clamped, a clamp would hide gradients; the first state has the noise
    of the chain's step that the way back begins with, not one more.

    Args:
        score: the score model, of a variance-preserving process.
        t_star: time to diffuse to, a multiple of 1/1000: steps of DDPM's chain.
        steps: network evaluations on the way back of a pass.
        gradient: "exact", "backprop" or "bpda"; see `purify.gradients`. The first two differentiate the guidance too.
        passes: how often to diffuse and to go back, always pulled towards the image that came in; in a `Sequential` of
            several GDMPs the later ones are pulled towards what the earlier ones return.
        guidance: "mse", "ssim", or "none".
        scale: strength of the guidance.
        epsilon: the attack's Linf budget on [0, 1], which the strength is divided by.
        target: "noised", the image diffused to the state's time, or "clean", the image itself.
        variance: of the steps, see `purify.solvers.Ancestral`; the published network for CIFAR-10 has "large".
        seed: of the fresh randomness of calls without keys.

    Raises:
        ValueError: an argument out of range or unknown, at construction; a scale that is too large for the images, at
            the latest when they come.
    """

    def __init__(
        self,
        score: ScoreModel,
        t_star: float = 0.036,
        steps: int = 36,
        gradient: GradientMode = "exact",
        *,
        passes: int = 4,
        guidance: Guidance = "mse",
        scale: float = 60000.0,
        epsilon: float = 8 / 255,
        target: Target = "noised",
        variance: Variance = "large",
        seed: int = 0,
    ):
        super().__init__(score, seed)
        check_choice(get_args(Guidance), guidance=guidance)
        check_choice(get_args(Target), target=target)
        check_choice(get_args(Variance), variance=variance)
        check_gradient(gradient, has_adjoint=False)
        check_count(passes=passes)
        check_positive(scale=scale, epsilon=epsilon)
        self.times = chain_times(score, t_star, steps)
        self.t_star, self.steps, self.gradient, self.passes = t_star, steps, gradient, passes
        self.guidance, self.scale, self.epsilon, self.target, self.variance = guidance, scale, epsilon, target, variance
        if score.image_shape is not None:
            self._check_strength(score.image_shape)

    def path(self, x: Tensor, keys: Tensor) -> Path:
        """See `Purifier.path`."""
        self._check_strength(x.shape[1:])
        solver = _Passes(self)

        def noised(image: Tensor, step: int) -> Tensor:
            number = min(step // self.steps, self.passes - 1)
            return solver.diffused(image, step - number * self.steps, stage_keys(keys, number), Stage.FORWARD, 0)

        return Path(solver, noised, self.times[:-1] * self.passes + self.times[-1:])

    def _check_strength(self, shape: Sequence[int]) -> None:
        """Raises ValueError where the pull by the MSE overshoots on images of that shape (c, h, w)."""
        share = 2 * _Passes(self).strength(0) / math.prod(shape)
        if self.guidance == "mse" and share > 2:
            raise ValueError(
                f"scale={self.scale:g} pulls {share:.3g} of the way to the image in the first step, beyond 2 that grows"
                f" without bound: for images of shape {tuple(shape)} and these steps take a scale of at most"
                f" {2 * self.scale / share:g}"
            )


class _Passes(Solver):
    """The steps of all passes; the last one of a pass ends with the diffusion that begins the next."""

    guided = True

    def __init__(self, settings: GDMP):
        self.settings = settings
        self.levels = Levels(settings.score, settings.times)
        self.ancestral = Ancestral(settings.variance)
        self.steps = settings.passes * settings.steps

    def step(self, index: int, state: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        assert image is not None
        number, inner = divmod(index, self.settings.steps)
        own = stage_keys(keys, number)
        x = self.ancestral.step(self.levels, inner, state, own)
        if self.settings.guidance != "none":
            x = x + self.strength(inner) * self._pull(inner, state, image, own)
        if inner + 1 == self.settings.steps and index + 1 < self.steps:
            return self.diffused(x, 0, stage_keys(keys, number + 1), Stage.FORWARD, 0)
        return x

    def diffused(self, image: Tensor, inner: int, keys: Tensor, stage: Stage, draw: int) -> Tensor:
        """The forward process at the pass's time `inner`."""
        return self.levels.alpha(inner) * image + self.levels.sigma(inner) * normals(keys, stage, draw, image)

    def strength(self, inner: int) -> float:
        """What the pull is multiplied by in step `inner` of a pass."""
        levels, settings = self.levels, self.settings
        r_t, r_s, sigma_s = levels.ratio(inner), levels.ratio(inner + 1), levels.sigma(inner + 1)
        v = levels.transition(inner)[1] ** 2 if settings.variance == "large" else sigma_s**2 * (1 - (r_s / r_t) ** 2)
        return float(v * 3 * settings.scale * r_t / (2 * settings.epsilon))

    def _pull(self, inner: int, state: Tensor, image: Tensor, keys: Tensor) -> Tensor:
        """Minus the gradient in `state` of the distance of each image."""
        target = image if self.settings.target == "clean" else self.diffused(image, inner, keys, Stage.GUIDE, inner)
        if self.settings.guidance == "mse":
            return (target - state) * (2 / state[0].numel())
        pull: Tensor = torch.func.grad(lambda x: ssim(x, target).sum())(state)
        return pull


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean structural similarity of each pair of images (Wang et al. 2004), with the constants of the code that GDMP
    uses.

    Gaussian windows of 11 x 11 pixels with deviation 1.5, zeros beyond the border, C1 = 0.01^2 and C2 = 0.03^2 whatever
    the range of the pixels.

    Args:
        x: (b, c, h, w).
        y: of the same shape.

    Returns:
        (b,), 1 where the two are equal.
    """
    offsets = torch.arange(-5, 6, dtype=x.dtype, device=x.device)
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    line = line / line.sum()
    channels = x.shape[1]
    window = torch.outer(line, line).expand(channels, 1, 11, 11)

    def local(images: Tensor) -> Tensor:
        return F.conv2d(images, window, padding=5, groups=channels)

    mean_x, mean_y = local(x), local(y)
    var_x, var_y, covariance = local(x * x) - mean_x**2, local(y * y) - mean_y**2, local(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (
        (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    )
    return similarity.flatten(1).mean(1)
