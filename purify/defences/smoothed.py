"""Randomised smoothing (Cohen et al. 2019, arXiv 1902.02918), with a diffusion model as denoiser (Carlini et al. 2023,
arXiv 2206.10550).

The smoothed classifier is g(x) = argmax over classes c of P(base(x + n) = c), n ~ N(0, sigma^2 I). Modules here are one
draw inside that probability: the logits of one noisy copy. `benchmarks.evaluation.certification.certify` draws many and
turns their counts into certified radii, which are statements about g alone: neither about the base classifier nor about
a single draw.

Everything is on the scale of images in [0, 1]: sigma, and with it every radius, in the L2 norm. On [-1, 1] both are
twice as large.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from purify.defences.keyed import takes_keys
from purify.noise import Purpose, Stage, check_keys, derive_keys, standard_normal
from purify.score.model import ScoreModel
from purify.score.smoothing import smoothing_time


class Smoothed(nn.Module):
    """One draw of Gaussian smoothing: logits of base(x + sigma n). Differentiable in x, and a random function of it.

    Args:
        base: any callable from images (b, c, h, w) around [0, 1] to logits (b, classes). One whose `forward` takes
            `keys`, for instance a `DefendedClassifier`, gets the draw's: its own randomness then is part of what is
            smoothed.
        sigma: standard deviation of the noise, on images in [0, 1].
        seed: of the counter that makes fresh keys for calls without keys.

    Raises:
        ValueError: sigma is not a positive number, or base cannot be called.
    """

    def __init__(self, base: Callable[..., Tensor], sigma: float, seed: int = 0):
        super().__init__()
        if not 0 < sigma < math.inf:
            raise ValueError(
                f"sigma must be a positive number, the noise's standard deviation on images in [0, 1], got {sigma}"
            )
        if not callable(base):
            raise ValueError(
                f"the base classifier must be a module or a function from images to logits, got {type(base).__name__}"
            )
        self.base = base
        self.sigma = float(sigma)
        self.seed = seed
        self._calls = 0
        self._base_takes_keys = takes_keys(base)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits (b, classes) of one noisy draw.

        Args:
            x: (b, c, h, w), floating point, in [0, 1].
            keys: (b,) int64 from `noise_keys`: each image's noise. None draws fresh keys from the module's own counter.

        Raises:
            ValueError: wrong shape, channels or dtype, or keys that do not fit.
        """
        self._check(x, keys)
        if keys is None:
            self._calls += 1
            keys = derive_keys(torch.arange(len(x), device=x.device), self._calls, self.seed, Purpose.FRESH)
        keys = keys.to(x.device)
        seen = self.restored(x + self.sigma * standard_normal(keys, Stage.SMOOTHING, 0, tuple(x.shape[1:]), x.dtype))
        if not self._base_takes_keys:
            return self.base(seen)
        # with the same key, smoothing inside smoothing would add the same noise twice, not more of it
        inner = derive_keys(keys, 0, 0, Purpose.CLASSIFIER) if isinstance(self.base, Smoothed) else keys
        return self.base(seen, keys=inner)

    def restored(self, noisy: Tensor) -> Tensor:
        """What the base classifier sees of the `noisy` images x + sigma n, (b, c, h, w): the images themselves."""
        return noisy

    def _check(self, x: Tensor, keys: Tensor | None) -> None:
        if x.ndim != 4:
            raise ValueError(f"x must be images of shape (b, c, h, w), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"x must be floating point in [0, 1], got {x.dtype}")
        if keys is not None:
            check_keys(keys, len(x))

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}"


class DenoisedSmoothing(Smoothed):
    """Diffusion denoised smoothing (Carlini et al. 2023, algorithm 1): classifier(E[x_0 | x + sigma n]), the denoiser
    one evaluation of a score network.

    The network is asked at the time t whose noise-to-signal ratio is that of the noise, sigma(t) / alpha(t) = sigma
    (highest - lowest) of its `value_range` (2 sigma on [-1, 1]), for x_t = alpha(t) (x + sigma n). The noise is exactly
    N(0, sigma^2) whatever the schedule, and the denoised image is not clamped.

    Args:
        score: the score model; frozen or not, it is never altered.
        classifier: as `base` of `Smoothed`, for denoised images in about [0, 1].
        sigma: standard deviation of the noise, on images in [0, 1].
        seed: of the counter that makes fresh keys for calls without keys.

    Raises:
        ValueError: a sigma below the least noise of the schedule, or beyond what the network was trained on; a
            class-conditional score model without a class.
    """

    def __init__(self, score: ScoreModel, classifier: Callable[..., Tensor], sigma: float, seed: int = 0):
        super().__init__(classifier, sigma, seed)
        score.check_class()
        self.score = score
        self.t = smoothing_time(score, sigma)

    def restored(self, noisy: Tensor) -> Tensor:
        """E[x_0 | x_t] of the `noisy` images x + sigma n, (b, c, h, w), in about [0, 1]."""
        x_t = self.score.schedule.alpha(self.t) * self.score.from_unit(noisy)
        return self.score.to_unit(self.score.denoised(x_t, self.t))

    def _check(self, x: Tensor, keys: Tensor | None) -> None:
        self.score.check_images(x)
        super()._check(x, keys)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}, t={self.t:g}"
