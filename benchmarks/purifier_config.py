"""The configuration of a purifier."""

from typing import Annotated, Literal

from pydantic import Field

from benchmarks.config import Section
from purify.gradients import GradientMode
from purify.sde import Grid


class PurifierConfig(Section):
    """See `purify.DiffPure`, which checks the values; with `size`, the purifier runs at that height and width, see `purify.Resized`."""

    scheme: Literal["diffpure"] = "diffpure"
    t_star: float
    steps: int
    gradient: GradientMode = "exact"
    solver: str = "torchsde"
    method: str = "euler"
    eta: float = 1.0
    t_end: float = 1e-5
    grid: Grid = "uniform"
    time: Literal["own", "vp"] = "own"
    noising: Literal["continuous", "discrete"] = "continuous"
    size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
