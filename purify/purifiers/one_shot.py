"""One-shot denoising (Carlini et al., ICLR 2023, arXiv 2206.10550, "(Certified!!) adversarial robustness for
free!").
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from purify.gradients import GradientMode
from purify.purifiers.diffpure import DiffPure
from purify.score.model import ScoreModel
from purify.solvers import Levels, StepRule


@dataclass(frozen=True)
class Denoise(StepRule):
    """The jump to E[x_0 | x_t]."""

    def step(self, levels: Levels, index: int, state: Tensor, keys: Tensor) -> Tensor:
        """See `StepRule.step`."""
        return levels.denoised(index, state)


class OneShot(DiffPure):
    """Diffuses the image to t_star and returns E[x_0 | x_t*]: one network evaluation (algorithm 1, without the votes).

    The paper smooths with sigma = 0.25, 0.5 or 1 on images in [0, 1] and takes the t_star with as much noise for its
    signal, 0.145 at sigma = 0.25 for DiffPure's process; see `purify.defences.smoothed`, where its certified radii are
    too. The default is DiffPure's t_star, so that the two compare.

    Args:
        score: the score model.
        t_star: time to diffuse to, in (0, score.t_max].
        gradient: "exact", "backprop" or "bpda"; see `purify.gradients`.
        time: whose time t_star is, see `DiffPure`.
        seed: of the fresh randomness of calls without keys.

    Raises:
        ValueError: an argument out of range or unknown, at construction.
    """

    def __init__(
        self,
        score: ScoreModel,
        t_star: float | Tensor = 0.1,
        gradient: GradientMode = "exact",
        *,
        time: Literal["own", "vp"] = "own",
        seed: int = 0,
    ):
        super().__init__(score, t_star, 1, gradient, Denoise(), t_end=0.0, time=time, seed=seed)
