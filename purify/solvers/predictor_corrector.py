"""Predictor-corrector sampling (Song et al. 2021, arXiv 2011.13456)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from purify.noise import Stage
from purify.solvers.base import Levels, StepRule, normals, scaled
from purify.solvers.ddim import DDIM

Predictor = Literal["ancestral", "reverse_diffusion"]


@dataclass(frozen=True)
class PredictorCorrector(StepRule):
    """Algorithms 2 and 3: after every step down, Langevin steps at the new level.

    A correction is x <- x + h score + sqrt(2 h) z with h = 2 a (snr |z| / |score|)^2 (algorithms 4 and 5), where a =
    (alpha_t / alpha_s)^2 of the step from t to s just taken: 1 for VE and EDM, 1 - beta for VP. The norms are those of
    each image, where the published code averages them over the batch: so h is a function of the image and the key, and
    is differentiated as all else. No correction follows the last step: n steps cost n + (n - 1) corrections. Weak order
    1 by the predictor; a correction keeps the marginal up to order h. Normals a pixel: one a step and one a correction.

    Args:
        corrections: Langevin steps a level, at least 1. Published 1.
        snr: "signal-to-noise" ratio of a Langevin step, > 0. Published 0.16 for CIFAR-10.
        predictor: "reverse_diffusion" (the paper's appendix E), whose last step adds no noise, or "ancestral", DDPM's
            step with the "small" variance (its appendix F).

    Raises:
        ValueError: settings out of range or unknown.
    """

    corrections: int = 1
    snr: float = 0.16
    predictor: Predictor = "reverse_diffusion"

    def __post_init__(self) -> None:
        if not isinstance(self.corrections, int) or self.corrections < 1:
            raise ValueError(
                f"corrections must be an integer from 1, got {self.corrections!r}; without any take the solver"
                " ancestral"
            )
        if not 0 < self.snr < math.inf:
            raise ValueError(f"snr must be a positive number, got {self.snr}")
        if self.predictor not in get_args(Predictor):
            raise ValueError(f"predictor={self.predictor!r} is not one of {', '.join(get_args(Predictor))}")

    @property
    def evaluations(self) -> int:
        """See `StepRule`."""
        return 1 + self.corrections

    @property
    def spared(self) -> int:
        """See `StepRule`."""
        return self.corrections

    def step(self, levels: Levels, index: int, state: Tensor, keys: Tensor) -> Tensor:
        """See `StepRule.step`."""
        x = (
            DDIM(eta=1.0).step(levels, index, state, keys)
            if self.predictor == "ancestral"
            else _reverse_diffusion(levels, index, state, keys)
        )
        if levels.is_last(index):
            return x
        sigma, unit = levels.sigma(index + 1), 2 * (self.snr * levels.transition(index)[0]) ** 2
        for count in range(self.corrections):
            z, noise = normals(keys, Stage.CORRECTOR, index * self.corrections + count, x), levels.noise(index + 1, x)
            size = unit * (sigma * _norm(z) / _norm(noise)) ** 2
            x = x - scaled(size / sigma, noise) + scaled((2 * size) ** 0.5, z)
        return x


def _reverse_diffusion(levels: Levels, index: int, x: Tensor, keys: Tensor) -> Tensor:
    """x_s = (2 - a) x + V score + sqrt(V) z, where the forward process from s to t multiplies by a and adds noise of
    variance V.
    """
    factor, std = levels.transition(index)
    mean = scaled(2 - factor, x) - scaled(std**2 / levels.sigma(index), levels.noise(index, x))
    return mean if levels.is_last(index) else mean + scaled(std, normals(keys, Stage.INCREMENT, index, x))


def _norm(x: Tensor) -> Tensor:
    """(b,): of each image."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)
