"""Gradual noise scheduling (Lee & Kim, ICCV 2023, arXiv 2303.09051, "Robust evaluation of diffusion-based adversarial
purification").
"""

from purify.gradients import GradientMode
from purify.purifiers.chain import chain_times
from purify.purifiers.diffpure import DiffPure
from purify.purifiers.sequential import Sequential
from purify.score.model import ScoreModel
from purify.solvers.grids import CHAIN_LENGTH


class Gradual(Sequential):
    """Diffusions and ancestral ways back in turn, with more noise from stage to stage.

    The defaults are those of the authors' script for CIFAR-10: 30 steps of DDPM's chain four times, 50 twice and 125
    twice, each with an evaluation for every step of the chain, 470 in all; their label is the majority of ten draws,
    here `DefendedClassifier(...).predict(x, votes=10)`, or, differentiably, `DefendedClassifier(..., copies=10)`. Their
    attack goes through a surrogate: stages=(30, 50, 125), steps=(1, 1, 5).

    Args:
        score: the score model, of a variance-preserving process (theirs is DDPM's chain with betas 1e-4 to 0.02).
        stages: steps of DDPM's chain of 1,000 that each stage diffuses by.
        steps: network evaluations of each stage on the way back; stage / steps is the stride.
        gradient: "exact", "backprop" or "bpda"; see `purify.gradients`.
        seed: of the fresh randomness of calls without keys.

    Raises:
        ValueError: an argument out of range or unknown, or tuples of different lengths, at construction.
    """

    def __init__(
        self,
        score: ScoreModel,
        stages: tuple[int, ...] = (30, 30, 30, 30, 50, 50, 125, 125),
        steps: tuple[int, ...] = (30, 30, 30, 30, 50, 50, 125, 125),
        gradient: GradientMode = "exact",
        *,
        seed: int = 0,
    ):
        if not stages or len(stages) != len(steps):
            raise ValueError(f"stages and steps must have one entry for each stage, got {len(stages)} and {len(steps)}")
        for stage, count in zip(stages, steps, strict=True):
            chain_times(score, stage / CHAIN_LENGTH, count)
        super().__init__(
            [
                DiffPure(score, stage / CHAIN_LENGTH, count, gradient, "ancestral", grid="chain")
                for stage, count in zip(stages, steps, strict=True)
            ],
            seed,
        )
        self.stages = tuple(stages)
        self.steps = tuple(steps)
        self.gradient = gradient

    def extra_repr(self) -> str:
        return f"stages={self.stages}, steps={self.steps}, gradient={self.gradient!r}"
