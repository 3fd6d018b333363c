"""What all ways of going back share: the protocol that gradients differentiate, and the frame of solvers given by a
formula for one step.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from purify.noise import Stage, standard_normal
from purify.schedules import transition
from purify.score.model import ScoreModel
from purify.solvers.grids import Times, per_image


class Solver(Protocol):
    """A fixed sequence of steps state_{i+1} = step(i, state_i), replayable from keys.

    `image` (b, c, h, w) is what guides a guided scheme, on the scale of the states, else None; every method is
    differentiable in it as in `x`.
    """

    steps: int
    guided: bool
    """Whether the steps look at `image`."""

    def begin(self, x: Tensor) -> Tensor:
        """The state of the first image x (b, c, h, w): (b, c', h, w) with c' >= c where a step remembers the ones
        before it.
        """

    def step(self, index: int, state: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """One step."""

    def end(self, state: Tensor) -> Tensor:
        """The image (b, c, h, w) of a state."""

    def solve(self, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """From the first image to the last: the same values as `step` after `step`, keeping every graph."""

    def solve_adjoint(self, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """The same values with a continuous adjoint as the gradient. Raises ValueError where there is none."""


class SolverSettings(Protocol):
    """A way of integrating, by its settings; `build` applies it to a score model and a grid of times."""

    has_adjoint: bool
    """Whether gradient="adjoint" exists."""

    evaluates_end: bool
    """Whether the network is asked at the last time, which must then have noise."""

    def intervals(self, steps: int) -> int:
        """Pieces of the time grid for `steps` network evaluations. Raises ValueError where no whole number of pieces
        needs so many.
        """

    def build(self, score: ScoreModel, times: Times) -> Solver:
        """The solver over the grid `times`. Raises ValueError for a process or a grid that it does not make
        sense with.
        """


class Stepping:
    """The parts of `Solver` that follow from `step`."""

    steps: int
    guided: bool = False

    def begin(self, x: Tensor) -> Tensor:
        """See `Solver.begin`."""
        return x

    def step(self, index: int, state: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """See `Solver.step`."""
        raise NotImplementedError

    def end(self, state: Tensor) -> Tensor:
        """See `Solver.end`."""
        return state

    def solve(self, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """See `Solver.solve`."""
        state = self.begin(x)
        for index in range(self.steps):
            state = self.step(index, state, keys, image)
        return self.end(state)

    def solve_adjoint(self, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """There is none: a formula for a step is no differential equation."""
        raise ValueError(
            'gradient="adjoint" needs a solver of differential equations (torchsde, torchdiffeq); use gradient="exact"'
        )


class Levels:
    """A score model along a grid of times.

    Levels of noise are floats, or (b,) float64 tensors where the images have times of their own; `scaled` multiplies
    images with either.

    Args:
        score: the score model.
        times: steps + 1 times, falling.
    """

    def __init__(self, score: ScoreModel, times: Times):
        self.score = score
        self.times = times
        self.steps = len(times) - 1

    def alpha(self, index: int) -> float | Tensor:
        """Factor of the data at the grid's time `index`."""
        return self.score.schedule.alpha(self.times[index])

    def sigma(self, index: int) -> float | Tensor:
        """Standard deviation of the noise at the grid's time `index`."""
        return self.score.schedule.sigma(self.times[index])

    def ratio(self, index: int) -> float | Tensor:
        """sigma / alpha at the grid's time `index`: EDM's sigma."""
        return self.sigma(index) / self.alpha(index)

    def transition(self, index: int) -> tuple[float | Tensor, float | Tensor]:
        """Factor and standard deviation of the forward process over step `index`, from its end to its beginning, see
        `purify.schedules.transition`.
        """
        return transition(self.score.schedule, self.times[index + 1], self.times[index])

    def is_last(self, index: int) -> bool:
        """Whether step `index` ends the grid."""
        return index == self.steps - 1

    def noise(self, index: int, x: Tensor) -> Tensor:
        """E[n | x] at the grid's time `index`; one network evaluation."""
        return self.score.noise(x, self.times[index])

    def denoised(self, index: int, x: Tensor) -> Tensor:
        """E[x_0 | x] at the grid's time `index`; one network evaluation."""
        return self.score.denoised(x, self.times[index])


def scaled(value: float | Tensor, x: Tensor) -> Tensor:
    """value * x, for a number or one number for each image."""
    return per_image(value, x) * x


def normals(keys: Tensor, stage: Stage, index: int, like: Tensor) -> Tensor:
    """Standard normals of the shape and dtype of the images `like`."""
    return standard_normal(keys, stage, index, tuple(like.shape[1:]), like.dtype)


@dataclass(frozen=True)
class StepRule:
    """Base of solvers that are a formula for one step: a subclass is a frozen dataclass of settings with `step`.

    Attributes:
        evaluations: network evaluations of a step.
        spared: how many of them the last step does without.
        remembers: how many images a step leaves to the next one, beside its result.
    """

    evaluations: ClassVar[int] = 1
    spared: ClassVar[int] = 0
    remembers: ClassVar[int] = 0
    has_adjoint: ClassVar[bool] = False
    evaluates_end: ClassVar[bool] = False

    def intervals(self, steps: int) -> int:
        """See `SolverSettings.intervals`."""
        pieces, rest = divmod(steps + self.spared, self.evaluations)
        if rest:
            near = [each for each in (steps - rest, steps - rest + self.evaluations) if each > 0]
            last = f", {self.evaluations - self.spared} in the last" if self.spared else ""
            raise ValueError(
                f"steps counts network evaluations, {self.evaluations} a step with {type(self).__name__}{last}: got"
                f" {steps}; give {' or '.join(map(str, near))}"
            )
        return pieces

    def check(self, levels: Levels) -> None:
        """Raises ValueError for a score model or a grid that the rule does not make sense with."""

    def build(self, score: ScoreModel, times: Times) -> Solver:
        """See `SolverSettings.build`."""
        levels = Levels(score, times)
        self.check(levels)
        return _Ruled(self, levels)

    def step(self, levels: Levels, index: int, state: Tensor, keys: Tensor) -> Tensor:
        """From the grid's time `index` to the next.

        Args:
            levels: the score model along the grid.
            index: of the step, from 0.
            state: the current image (b, c, h, w); where the rule remembers, followed by what the step before left,
                along the channels (zeros at first).
            keys: (b,) int64.

        Returns:
            The next state, of the same shape.
        """
        raise NotImplementedError


class _Ruled(Stepping):
    """A `StepRule` on a grid."""

    def __init__(self, rule: StepRule, levels: Levels):
        self.rule = rule
        self.levels = levels
        self.steps = levels.steps

    def begin(self, x: Tensor) -> Tensor:
        return torch.cat([x, *[torch.zeros_like(x)] * self.rule.remembers], dim=1) if self.rule.remembers else x

    def step(self, index: int, state: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        return self.rule.step(self.levels, index, state, keys)

    def end(self, state: Tensor) -> Tensor:
        return state.chunk(1 + self.rule.remembers, dim=1)[0]
