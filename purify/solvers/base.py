"""How the way back is integrated: settings that, built for a score model and a grid of times, give a solver.

A new solver is one file of about fifty lines. Where it is a formula for one step from the time t to the next time s, as
most are, that is a frozen dataclass of its settings with `step`, based on `StepRule`:

    @dataclass(frozen=True)
    class Euler(StepRule):
        \"\"\"x_s = (alpha_s / alpha_t) x_t + alpha_s (r_s - r_t) n with r = sigma / alpha: Euler's method.

        Args:
            weight: of the predicted noise n; 1 is the method.
        \"\"\"

        weight: float = 1.0

        def step(self, levels, index, state, keys):
            alpha_t, r_t = levels.alpha(index), levels.ratio(index)
            alpha_s, r_s = levels.alpha(index + 1), levels.ratio(index + 1)
            n = levels.noise(index, state)
            return scaled(alpha_s / alpha_t, state) + scaled(self.weight * alpha_s * (r_s - r_t), n)

`purify.DiffPure(score, solver=Euler())` takes it, in every gradient mode but "adjoint"; a name in
`purify.solvers.SOLVERS` makes it known to configurations and to the tests of all solvers. What to keep to:

- Numbers of the grid are floats, or (b,) tensors where every image has times of its own; `scaled` multiplies images by
  either.
- Randomness comes from `normals(keys, stage, number, like)` alone: a `number` of its own for each draw of a stage, so
  that a step that is computed again, for its gradient, sees the same noise.
- A step is differentiable in its state, and changes nothing.
- More than one evaluation a step is said in `evaluations` and `spared`, memory of the step before in `remembers`.
- What the grid or the score model must be like is looked at in `check`, what the settings must be in `__post_init__`.

Solvers of differential equations, which walk inside a library, have settings of their own kind (`SolverSettings`) that
build a `Solver` (`purify.solvers.torchsde`).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from purify.noise import Stage, standard_normal
from purify.schedules import noise_to_signal, transition
from purify.score.model import ScoreModel
from purify.solvers.grids import Times, per_image


class Solver:
    """A fixed sequence of steps state_{i+1} = step(i, state_i), replayable from keys: what gradients differentiate. A
    subclass has `steps` and `step`; the rest follows from it.

    `image` (b, c, h, w) is what guides a guided scheme, on the scale of the states, else None; every method is
    differentiable in it as in `x`.

    Attributes:
        steps: how many.
        guided: whether the steps look at `image`.
    """

    steps: int
    guided: bool = False

    def begin(self, x: Tensor) -> Tensor:
        """The state of the first image x (b, c, h, w): (b, c', h, w) with c' >= c where a step remembers the ones
        before it.
        """
        return x

    def step(self, index: int, state: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """One step."""
        raise NotImplementedError

    def end(self, state: Tensor) -> Tensor:
        """The image (b, c, h, w) of a state."""
        return state

    def solve(self, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """From the first image to the last: the same values as `step` after `step`, keeping every graph."""
        state = self.begin(x)
        for index in range(self.steps):
            state = self.step(index, state, keys, image)
        return self.end(state)

    def solve_adjoint(self, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """The same values with a continuous adjoint as the gradient. Raises ValueError where there is none: a formula
        for a step is no differential equation.
        """
        raise ValueError(
            'gradient="adjoint" needs a solver of differential equations (torchsde, torchdiffeq); use gradient="exact"'
        )


Stepping = Solver
"""The name of `Solver` in version 0.1, where it was apart from its protocol."""


class SolverSettings(Protocol):
    """A way of integrating, by its settings; `build` applies it to a score model and a grid of times."""

    @property
    def has_adjoint(self) -> bool:
        """Whether gradient="adjoint" exists."""

    @property
    def evaluates_end(self) -> bool:
        """Whether the network is asked at the last time, which must then have noise."""

    def intervals(self, steps: int) -> int:
        """Pieces of the time grid for `steps` network evaluations. Raises ValueError where no whole number of pieces
        needs so many.
        """

    def build(self, score: ScoreModel, times: Times) -> Solver:
        """The solver over the grid `times`. Raises ValueError for a process or a grid that it does not make
        sense with.
        """


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
        """r = sigma / alpha at the grid's time `index`: EDM's sigma."""
        return noise_to_signal(self.score.schedule, self.times[index])

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


def normals(keys: Tensor, stage: Stage, number: int, like: Tensor) -> Tensor:
    """Standard normals of the shape and dtype of the images `like`: draw `number` of the stage."""
    return standard_normal(keys, stage, number, tuple(like.shape[1:]), like.dtype)


@dataclass(frozen=True)
class StepRule:
    """Base of solvers that are a formula for one step: a subclass is a frozen dataclass of settings with `step`. Where
    its steps are not of the usual kind, it says so in plain class attributes or properties of the names below.
    """

    @property
    def evaluations(self) -> int:
        """Network evaluations of a step."""
        return 1

    @property
    def spared(self) -> int:
        """How many of them the last step does without."""
        return 0

    @property
    def remembers(self) -> int:
        """How many images a step leaves to the next one, beside its result."""
        return 0

    @property
    def has_adjoint(self) -> bool:
        """See `SolverSettings.has_adjoint`."""
        return False

    @property
    def evaluates_end(self) -> bool:
        """See `SolverSettings.evaluates_end`."""
        return False

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
        """From the grid's time t of `index` to the next, s.

        Args:
            levels: the score model along the grid.
            index: of the step, from 0.
            state: the current image x_t (b, c, h, w); where the rule remembers, followed by what the step before left,
                along the channels (zeros at first).
            keys: (b,) int64.

        Returns:
            The next state, of the same shape.
        """
        raise NotImplementedError


class _Ruled(Solver):
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
