"""DDPM's chain of 1,000 steps, in which some schemes count."""

from purify.checks import check_count
from purify.score.model import ScoreModel
from purify.solvers.grids import time_grid


def chain_times(score: ScoreModel, t_star: float, steps: int) -> tuple[float, ...]:
    """steps + 1 times of the score model's schedule from `t_star` down to 0, multiples of 1/1000 as equally spaced as
    integers can be.

    Args:
        score: the score model, of a variance-preserving process.
        t_star: a multiple of 1/1000 in (0, score.t_max].
        steps: network evaluations, at most t_star * 1000.

    Raises:
        ValueError: numbers out of range, or a process that is no continuation of DDPM's chain.
    """
    check_count(steps=steps)
    if not 0 < t_star <= score.t_max:
        raise ValueError(f"t_star must lie in (0, t_max={score.t_max:g}], got {t_star}")
    if any(
        abs(score.schedule.alpha(t) ** 2 + score.schedule.sigma(t) ** 2 - 1) > 1e-6
        for t in (t_star, score.schedule.t_max)
    ):
        raise ValueError(
            f"steps of DDPM's chain are times of a variance-preserving schedule; this score model has {score.schedule}:"
            " use DiffPure for it"
        )
    return tuple(time_grid(t_star, 0.0, steps, "chain"))
