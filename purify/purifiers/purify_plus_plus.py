"""Purify++ (Zhang, Luo & Zhang 2023, arXiv 2310.18762)."""

from typing import Literal

from torch import Tensor

from purify.gradients import GradientMode
from purify.purifiers.diffpure import DiffPure
from purify.score.model import ScoreModel
from purify.solvers import Heun


class PurifyPlusPlus(DiffPure):
    """EDM's way back: few Heun steps of the probability-flow ODE, with randomness in a measured amount, for a network
    trained as EDM's.

    The paper's three choices are an EDM network, Heun's method with few evaluations, and a mixture of the ODE with
    Langevin noise. Its own numbers are not known here: the defaults are DiffPure's t_star, ten Heun steps (19
    evaluations), and for the noise EDM's sampler with its settings for CIFAR-10 (Karras et al. 2022, arXiv 2206.00364,
    table 5). S_churn is the amount of noise, 0 leaves the ODE.

    Args:
        score: the score model, EDM's or any other.
        t_star: time to diffuse to, see `time`; or (b,) times.
        steps: network evaluations on the way back, an odd number: two for each step but the last.
        gradient: "exact", "backprop" or "bpda"; see `purify.gradients`.
        S_churn: amount of noise on the way back, from 0; see `purify.solvers.Heun`.
        S_tmin: lowest noise level to churn at, as sigma / alpha.
        S_tmax: highest noise level to churn at, as sigma / alpha.
        S_noise: standard deviation of the churned normals.
        time: whose time t_star is: "vp" (default), DiffPure's, or "own", the score model's, which for EDM's schedule is
            the noise level.
        t_end: where to stop, in that time.
        seed: of the fresh randomness of calls without keys.

    Raises:
        ValueError: an argument out of range or unknown, at construction.
    """

    def __init__(
        self,
        score: ScoreModel,
        t_star: float | Tensor = 0.1,
        steps: int = 19,
        gradient: GradientMode = "exact",
        *,
        S_churn: float = 30.0,
        S_tmin: float = 0.01,
        S_tmax: float = 1.0,
        S_noise: float = 1.007,
        time: Literal["own", "vp"] = "vp",
        t_end: float = 1e-5,
        seed: int = 0,
    ):
        super().__init__(
            score,
            t_star,
            steps,
            gradient,
            Heun(S_churn, S_tmin, S_tmax, S_noise),
            t_end=t_end,
            grid="karras",
            time=time,
            seed=seed,
        )
