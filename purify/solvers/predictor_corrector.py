"""Predictor-corrector sampling (Song et al. 2021, arXiv 2011.13456)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from purify.checks import check_choice, check_positive
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
        check_positive(snr=self.snr)
        check_choice(get_args(Predictor), predictor=self.predictor)

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
        predict = DDIM(eta=1.0).step if self.predictor == "ancestral" else _reverse_diffusion
        x = predict(levels, index, state, keys)
        if levels.is_last(index):
            return x
        sigma_s, (root_a, _) = levels.sigma(index + 1), levels.transition(index)
        for count in range(self.corrections):
            z = normals(keys, Stage.CORRECTOR, index * self.corrections + count, x)
            n = levels.noise(index + 1, x)
            h = 2 * (self.snr * root_a) ** 2 * (sigma_s * _norm(z) / _norm(n)) ** 2
            x = x - scaled(h / sigma_s, n) + scaled((2 * h) ** 0.5, z)  # score = -n / sigma_s
        return x


def _reverse_diffusion(levels: Levels, index: int, x_t: Tensor, keys: Tensor) -> Tensor:
    """x_s = (2 - a) x_t - (V / sigma_t) n + sqrt(V) z, where the forward process from s to t multiplies by a and adds
    noise of variance V; -n / sigma_t is the score.
    """
    a, root_v = levels.transition(index)
    n = levels.noise(index, x_t)
    mean = scaled(2 - a, x_t) - scaled(root_v**2 / levels.sigma(index), n)
    if levels.is_last(index):
        return mean
    z = normals(keys, Stage.INCREMENT, index, x_t)
    return mean + scaled(root_v, z)


def _norm(x: Tensor) -> Tensor:
    """(b,): of each image."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm
