"""What all purifiers share: the value range, the keys, the checks."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from purify import gradients
from purify.checks import check_choice
from purify.gradients import GradientMode
from purify.noise import Purpose, check_keys, derive_keys
from purify.score.model import ScoreModel
from purify.solvers import Solver
from purify.solvers.grids import Times


class Trajectory(NamedTuple):
    """What a purifier, or a defended classifier, returns and what it passes through, at p points evenly spaced over the
    steps, both ends included.

    Every tensor is differentiable in the input. States and estimates are on the scale of images in [0, 1], of which
    noise leaves them free to stray.
    """

    result: Tensor
    """What `forward` returns: images, or logits."""
    noised: Tensor
    """(p, b, c, h, w): the forward process at the points' times, by the same noise throughout. Where a scheme adds
    none, the image itself.
    """
    states: Tensor
    """(p, b, c, h, w): the way back. The first state equals the first noised image."""
    estimates: Tensor | None
    """What `forward` would return if the model jumped from each point but the last to its clean image E[x_0 | state],
    (p - 1, *result.shape), if asked for.
    """


@dataclass(frozen=True)
class Path:
    """The way of a batch of images to their purified versions, on the diffusion's scale."""

    solver: Solver
    noised: Callable[[Tensor, int], Tensor]
    """(image, i) -> the forward process at the time of the state after i steps; at i = 0 the state that the solver
    starts from.
    """
    times: Times
    """Of the states, solver.steps + 1, see `purify.solvers.grids`."""

    def start(self, image: Tensor) -> Tensor:
        """The first state."""
        return self.noised(image, 0)


class Purifier(nn.Module):
    """Images in [0, 1] in, images in about [0, 1] out (not clamped: a clamp would hide gradients).

    A subclass implements `path` and has its mode of differentiation in `gradient`, or implements `purify` and offers no
    trajectory.

    Args:
        score: the score model; frozen or not, it is never altered.
        seed: of the counter that makes fresh keys for calls without keys.

    Raises:
        ValueError: a class-conditional score model without a class.
    """

    gradient: GradientMode

    def __init__(self, score: ScoreModel, seed: int = 0):
        super().__init__()
        score.check_class()
        self.score = score
        self.seed = seed
        self._calls = 0

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Purifies a batch.

        Args:
            x: (b, c, h, w), floating point, in [0, 1].
            keys: (b,) int64 from `noise_keys`: each image's randomness. None draws fresh keys from the module's own
                counter, so every call is random and a program run twice repeats itself.

        Returns:
            (b, c, h, w), dtype and device of `x`, in about [0, 1].

        Raises:
            ValueError: wrong shape, channels, size or dtype, or keys that do not fit.
        """
        self._check(x, keys)
        if not len(x):
            return x
        keys = self._fresh_keys(x) if keys is None else keys.to(x.device)
        return self.score.to_unit(self.purify(self.score.from_unit(x), keys))

    def trajectory(self, x: Tensor, keys: Tensor | None = None, points: int = 4, estimates: bool = False) -> Trajectory:
        """As `forward`, with the states on the way: for attacks that look inside. Gradients are exact, the memory that
        of `forward` and of what is returned.

        Args:
            x: as for `forward`.
            keys: as for `forward`.
            points: how many states, from 2; every one where there are fewer.
            estimates: whether to compute the clean images that the states stand for too: one more network evaluation
                for each.

        Raises:
            ValueError: as `forward`; too few points; a gradient mode other than "exact" and "backprop".
        """
        self._check(x, keys)
        if not isinstance(points, int) or points < 2:
            raise ValueError(f"points must be an integer from 2, got {points!r}")
        keys = self._fresh_keys(x) if keys is None else keys.to(x.device)
        image, unit = self.score.from_unit(x), self.score.to_unit
        path = self.path(image, keys)
        steps = path.solver.steps
        stops = sorted({round(steps * i / (points - 1)) for i in range(points)})
        states = gradients.solve_through(path.solver, path.start, image, keys, self.gradient, stops)
        noised = torch.stack([path.noised(image, stop) for stop in stops])
        clean = None
        if estimates:
            denoisers = [_Denoiser(self.score, path.times[stop]) for stop in stops[:-1]]
            clean = torch.stack(
                [
                    gradients.solve(d, _same, state, keys, self.gradient)
                    for d, state in zip(denoisers, states[:-1], strict=True)
                ]
            )
        return Trajectory(
            unit(states[-1]), unit(noised), unit(torch.stack(states)), None if clean is None else unit(clean)
        )

    def purify(self, x: Tensor, keys: Tensor) -> Tensor:
        """`forward` on the diffusion's scale: `x` (b, c, h, w) in `score.value_range`, `keys` (b,) int64 on the same
        device.
        """
        path = self.path(x, keys)
        return gradients.solve(path.solver, path.start, x, keys, self.gradient)

    def path(self, x: Tensor, keys: Tensor) -> Path:
        """How images of the shape, dtype and device of `x`, on the diffusion's scale, are purified under `keys` (b,)
        int64.
        """
        raise ValueError(f"{type(self).__name__} does not tell its states on the way: it has no trajectory")

    def extra_repr(self) -> str:
        """The settings: what the constructor takes and the instance has, but for the score model and the seed."""
        names = [name for name in inspect.signature(type(self)).parameters if name not in ("score", "seed")]
        return ", ".join(f"{name}={shown(getattr(self, name))}" for name in names if hasattr(self, name))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def _fresh_keys(self, x: Tensor) -> Tensor:
        self._calls += 1
        return derive_keys(torch.arange(len(x), device=x.device), self._calls, self.seed, Purpose.FRESH)

    def _check(self, x: Tensor, keys: Tensor | None) -> None:
        self.score.check_images(x)
        if keys is not None:
            check_keys(keys, len(x))


class _Denoiser(Solver):
    """E[x_0 | x_t] as a solver of one step, to be differentiated like all others."""

    steps = 1

    def __init__(self, score: ScoreModel, t: float | Tensor):
        self.score = score
        self.t = t

    def step(self, index: int, state: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        return self.score.denoised(state, self.t)


def _same(x: Tensor) -> Tensor:
    return x


def shown(value: object) -> str:
    """A setting for people: six digits of a number are enough."""
    return f"{value:g}" if isinstance(value, float) else repr(value)


def trajectory_of(module: nn.Module, name: str) -> Callable[[Tensor, Tensor | None, int, bool], Trajectory]:
    """The method `trajectory` of a module that may have none; `name` says which module an error speaks of.

    Raises:
        ValueError: it has none.
    """
    method: Callable[[Tensor, Tensor | None, int, bool], Trajectory] | None = getattr(module, "trajectory", None)
    if method is None:
        raise ValueError(f"{name} has no method `trajectory`, so its states on the way are unknown")
    return method


def check_gradient(gradient: str, has_adjoint: bool) -> None:
    """Raises ValueError for an unknown mode, or an adjoint that the solver does not have."""
    check_choice(gradients.MODES, gradient=gradient)
    if gradient == "adjoint" and not has_adjoint:
        raise ValueError(
            'gradient="adjoint" needs a solver that has one (torchsde\'s euler and milstein in fixed steps,'
            ' torchdiffeq); use gradient="exact"'
        )
