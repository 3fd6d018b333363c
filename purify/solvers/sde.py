"""The SDEs that purify, each on a clock that counts steps.

A solver sees drift and diffusion per unit of the clock u in [0, steps] and walks integers, whatever times the steps
stand for: times are never compared as floats.
"""

from typing import Protocol

from torch import Tensor

from purify.score.model import ScoreModel
from purify.solvers.grids import Times, per_image


class SDE(Protocol):
    """An Ito equation with additive noise, dx = drift du + diffusion dw, on the clock u in [0, steps].

    The pieces [i, i + 1] of the clock may have different paces. Where two of them meet, `piece` says which one is
    meant; None is the one that begins there.
    """

    steps: int
    guided: bool
    """Whether the drift looks at the image that is purified."""

    def drift(self, u: float, x: Tensor, image: Tensor | None = None, piece: int | None = None) -> Tensor:
        """dx/du without noise at x (b, c, h, w); `image` (b, c, h, w) where the equation is guided by it."""

    def diffusion(self, u: float, piece: int | None = None) -> float | Tensor:
        """Standard deviation of the noise per square root of u, the same for all pixels: of all images, or (b,)."""

    def of_images(self, which: slice) -> "SDE":
        """The equation of some images of the batch."""


class ReverseSDE:
    """dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw, for dt < 0, over the pieces of a time grid.

    eta = 1 is Anderson's reverse SDE (Song et al. 2021, arXiv 2011.13456, eq. 6), eta = 0 the probability-flow ODE (eq.
    13); every eta has the same marginals. t is piecewise linear in the clock u with the grid's times at the integers.

    Args:
        score: the score model.
        times: the grid, strictly decreasing, see `purify.solvers.grids`.
        eta: share of the noise, >= 0.
    """

    guided = False

    def __init__(self, score: ScoreModel, times: Times, eta: float = 1.0):
        self.score = score
        self.times = times
        self.eta = eta
        self.steps = len(times) - 1

    def drift(self, u: float, x: Tensor, image: Tensor | None = None, piece: int | None = None) -> Tensor:
        """See `SDE.drift`; `image` is not looked at."""
        t, dt = self._time(u, piece)
        schedule = self.score.schedule
        # g^2 score = -g^2/sigma E[n | x_t]
        weight = 0.5 * (1 + self.eta**2) * schedule.diffusion(t) ** 2 / schedule.sigma(t)
        return per_image(dt * schedule.drift(t), x) * x + per_image(dt * weight, x) * self.score.noise(x, t)

    def diffusion(self, u: float, piece: int | None = None) -> float | Tensor:
        """See `SDE.diffusion`."""
        t, dt = self._time(u, piece)
        return self.eta * self.score.schedule.diffusion(t) * (-dt) ** 0.5

    def of_images(self, which: slice) -> "ReverseSDE":
        """See `SDE.of_images`."""
        return ReverseSDE(self.score, self.times[:, which], self.eta) if isinstance(self.times, Tensor) else self

    def _time(self, u: float, piece: int | None) -> tuple[float | Tensor, float | Tensor]:
        """The time at u, and dt/du on the piece."""
        i = min(int(u), self.steps - 1) if piece is None else piece
        dt = self.times[i + 1] - self.times[i]
        return (self.times[int(u)] if u == int(u) else self.times[i] + (u - i) * dt), dt


class LangevinSDE:
    """dx = -lambda/2 [(x - image)/sigma^2 - score(x, t)] ds + eta sqrt(lambda) dw: Langevin dynamics around the image,
    at one fixed noise level t.

    DiffPure's LD-SDE (Nie et al. 2022, arXiv 2205.07460, appendix). Every unit of the clock is `ds`.

    Args:
        score: the score model.
        steps: length of the clock.
        ds: pseudo-time of a step.
        t: where the score is taken.
        lam: speed lambda.
        sigma2: variance sigma^2 of the pull towards the image.
        eta: factor of the noise; 1 would sample from the posterior.
    """

    guided = True

    def __init__(self, score: ScoreModel, steps: int, ds: float, t: float, lam: float, sigma2: float, eta: float):
        self.score = score
        self.steps = steps
        self.ds, self.t, self.lam, self.sigma2, self.eta = ds, t, lam, sigma2, eta

    def drift(self, u: float, x: Tensor, image: Tensor | None = None, piece: int | None = None) -> Tensor:
        """See `SDE.drift`."""
        assert image is not None
        return (-0.5 * self.lam * self.ds) * ((x - image) / self.sigma2 - self.score.score(x, self.t))

    def diffusion(self, u: float, piece: int | None = None) -> float:
        """See `SDE.diffusion`."""
        std: float = self.eta * (self.lam * self.ds) ** 0.5
        return std

    def of_images(self, which: slice) -> "LangevinSDE":
        """See `SDE.of_images`."""
        return self
