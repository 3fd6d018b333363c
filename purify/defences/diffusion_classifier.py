"""A class-conditional diffusion model as a classifier (Li et al. 2023, arXiv 2303.16203; Chen et al. 2024, arXiv
2305.15241).
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from purify import gradients
from purify.checks import check_count, check_positive
from purify.noise import Purpose, Stage, check_keys, derive_keys
from purify.score.model import ScoreModel
from purify.solvers import Solver
from purify.solvers.base import normals


class DiffusionClassifier(nn.Module):
    """Logit of class y: minus the weighted mean over times of |n - E[n | x_t, y]|^2, an estimate of the bound on log
    p(x | y) over the number of pixels, up to what all classes share.

    A random function of the image: the noise is drawn for every image and time, and is the same for all classes, which
    takes most of the variance out of their differences. Behind a purifier, `DefendedClassifier(purify.Likelihood(...),
    DiffusionClassifier(...))` is the robust diffusion classifier; its draws are keyed too.

    Args:
        score: a class-conditional score model, without a class chosen.
        times: how many times, each with one draw of noise; spread evenly over (0, t_max) of DiffPure's VP process, for
            every network those with the same ratio of noise to signal. They cost one network evaluation for every
            class.
        temperature: what the logits are divided by. 1 (default) is the published code; losses are means over pixels.
        weights: of the times, from the smallest; None for equal ones, which is the simple loss of DDPM.
        t_max: end of the times, in (0, 1]. The authors' code for EDM ends at a noise level of 3, which is 0.48.
        gradient: "exact" or "backprop"; see `purify.gradients`. The memory of "exact" is one network evaluation's.
        seed: of the fresh randomness of calls without keys.

    Raises:
        ValueError: a score model that has no classes, or one chosen; an argument out of range.
    """

    def __init__(
        self,
        score: ScoreModel,
        times: int = 10,
        temperature: float = 1.0,
        weights: tuple[float, ...] | None = None,
        t_max: float = 1.0,
        gradient: Literal["exact", "backprop"] = "exact",
        seed: int = 0,
    ):
        super().__init__()
        if score.classes is None or score.class_label is not None:
            state = "has no classes" if score.classes is None else f"has class {score.class_label} chosen"
            raise ValueError(f"score must be a class-conditional score model without a class, this one {state}")
        check_count(times=times)
        check_positive(temperature=temperature)
        weights = (1.0,) * times if weights is None else tuple(weights)
        if len(weights) != times or not all(0 <= weight < math.inf for weight in weights) or not sum(weights) > 0:
            raise ValueError(f"weights must be {times} numbers from 0, one for each time and not all 0, got {weights}")
        if gradient not in ("exact", "backprop"):
            raise ValueError(f"gradient={gradient!r} is not one of exact, backprop: a classifier has no other")
        if not 0 < t_max <= 1:
            raise ValueError(f"t_max must lie in (0, 1], got {t_max}")
        own = [score.time_of_vp((index + 0.5) / times * t_max) for index in range(times)]
        if own[-1] > score.t_max:
            raise ValueError(
                f"the last time is {own[-1]:g} in the score model's own time, beyond {score.t_max:g}, the largest that"
                f" it was trained on: lower t_max={t_max}"
            )
        self.score = score
        self.times = times
        self.temperature = temperature
        self.weights = weights
        self.gradient = gradient
        self.seed = seed
        self._own_times = own
        self._calls = 0

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits (b, classes) of one draw; `x` (b, c, h, w) in [0, 1], `keys` (b,) int64 or None for fresh randomness.

        Raises:
            ValueError: wrong shape or dtype, or keys that do not fit.
        """
        self.score.check_images(x)
        if keys is None:
            self._calls += 1
            keys = derive_keys(torch.arange(len(x), device=x.device), self._calls, self.seed, Purpose.FRESH)
        check_keys(keys, len(x))
        losses = gradients.solve(_Losses(self), self._zeros, self.score.from_unit(x), keys.to(x.device), self.gradient)
        return -losses.flatten(1) / self.temperature

    def _zeros(self, image: Tensor) -> Tensor:
        return image.new_zeros(len(image), self.score.classes or 0, 1, 1)

    def extra_repr(self) -> str:
        return (
            f"times={self.times}, temperature={self.temperature:g}, weights={self.weights}, gradient={self.gradient!r}"
        )


class _Losses(Solver):
    """A sum with one step for every time and class: the state is what has been added up, (b, classes, 1, 1)."""

    guided = True

    def __init__(self, settings: DiffusionClassifier):
        self.settings = settings
        self.classes = [settings.score.with_class(label) for label in range(settings.score.classes or 0)]
        self.steps = settings.times * len(self.classes)

    def step(self, index: int, state: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        assert image is not None
        number, label = divmod(index, len(self.classes))
        settings, t = self.settings, self.settings._own_times[number]
        noise = normals(keys, Stage.LOSS, number, image)
        error = self.classes[label].noise(settings.score.diffuse(image, noise, t), t) - noise
        loss = error.square().flatten(1).mean(1) * (settings.weights[number] / sum(settings.weights))
        chosen = torch.arange(len(self.classes), device=state.device) == label
        return state + torch.where(chosen, loss[:, None], 0)[:, :, None, None]
