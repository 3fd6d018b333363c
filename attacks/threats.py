"""Threat models: which perturbed images count, and how to move among them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.randomness import uniform


@dataclass(frozen=True)
class Threat(ABC):
    """All images in [0, 1] within `epsilon` of the original in some norm.

    Args:
        epsilon: radius, for images in [0, 1]; positive.
    """

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < float("inf"):
            raise ValueError(f"epsilon must be a positive number, got {self.epsilon}")

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """An allowed image near `x_adv`: into the ball around `x`, then into [0, 1] (which, `x` being in [0, 1], stays
        in the ball).
        """
        return (x + self.into_ball(x_adv - x)).clamp(0, 1)

    @abstractmethod
    def into_ball(self, delta: Tensor) -> Tensor:
        """The nearest perturbation within the radius; (b, c, h, w)."""

    @abstractmethod
    def direction(self, gradient: Tensor) -> Tensor:
        """The perturbation of unit norm that raises a linear loss of this gradient the most; (b, c, h, w)."""

    @abstractmethod
    def random_start(self, uniform: Tensor) -> Tensor:
        """A random perturbation within the radius from independent uniforms in [0, 1); (b, c, h, w)."""

    @abstractmethod
    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(b,): the norm of each image's perturbation."""

    def __str__(self) -> str:
        in_255 = self.epsilon * 255
        whole = abs(in_255 - round(in_255)) < 1e-6 and round(in_255) != 255
        return f"{type(self).__name__} {f'{round(in_255)}/255' if whole else f'{self.epsilon:g}'}"


class Linf(Threat):
    """Every pixel may change by at most epsilon."""

    def into_ball(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.epsilon, self.epsilon)

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def random_start(self, uniform: Tensor) -> Tensor:
        return (2 * uniform - 1) * self.epsilon

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        return (x_adv - x).abs().flatten(1).amax(1)


class L2(Threat):
    """The Euclidean norm of the change over all pixels and channels is at most epsilon."""

    def into_ball(self, delta: Tensor) -> Tensor:
        return delta * (self.epsilon / _norm(delta).clamp_min(1e-30)).clamp_max(1)

    def direction(self, gradient: Tensor) -> Tensor:
        # Scaled by the largest entry first: the squares of small gradients underflow.
        scaled = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        return scaled / _norm(scaled).clamp_min(torch.finfo(gradient.dtype).tiny)

    def random_start(self, uniform: Tensor) -> Tensor:
        return self.epsilon * self.direction(2 * uniform - 1) * uniform[:, :1, :1, :1]

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        return _norm(x_adv - x).flatten()


def random_point(threat: Threat, x: Tensor, keys: Tensor) -> Tensor:
    """(b, c, h, w): a random allowed image for each of `x`, by its key."""
    return threat.project(x + threat.random_start(uniform(keys, tuple(x.shape[1:]), x.dtype)), x)


def _norm(x: Tensor) -> Tensor:
    """(b, 1, 1, 1) Euclidean norm of each image."""
    norm: Tensor = x.flatten(1).norm(dim=1)
    return norm[:, None, None, None]
