"""Gaussian noise on images in [0, 1] as a time of a score model's process: where smoothing and diffusion meet."""

from purify.schedules import noise_to_signal
from purify.score.model import ScoreModel

_ROUNDING = 1e-6  # of a schedule's times


def smoothing_time(score: ScoreModel, sigma: float, name: str = "sigma") -> float:
    """The score model's time with as much noise for its signal as images in [0, 1] under N(0, sigma^2).

    Args:
        score: the score model.
        sigma: the standard deviation.
        name: of the argument, for the error.

    Raises:
        ValueError: its process has no such time, or only one beyond the `t_max` that the network was trained on.
    """
    width, schedule = score.value_range[1] - score.value_range[0], score.schedule
    most = noise_to_signal(schedule, score.t_max) / width
    if sigma > most:
        trained = f"the most noise that the score network was trained on (t_max={score.t_max:g})"
        raise ValueError(f"{name}={sigma:g} is beyond {most:g}, {trained}: take a smaller {name}")
    t = max(0.0, min(schedule.time_of(sigma * width), score.t_max))
    nearest = noise_to_signal(schedule, t) / width
    if nearest > sigma * (1 + _ROUNDING):
        raise ValueError(
            f"{name}={sigma:g} is below {nearest:g}, the least noise of {schedule} on images in [0, 1]: take a larger"
            f" {name}"
        )
    return t
