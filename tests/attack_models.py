"""Models whose worst perturbations are known, for the tests of attacks."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import attacks
from attacks.randomness import uniform


class Linear(nn.Module):
    """Two classes, the second one's logit minus the first one's is w . (x - 1/2): float64 images (b, 3, 6, 6)."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.register_buffer(
            "w", scale * torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        )

    def forward(self, x):
        z = ((x - 0.5) * self.w.to(x.dtype)).sum((1, 2, 3))
        return torch.stack([-z, z], 1) / 2


class LinearMany(nn.Module):
    """`classes` classes, logits W (x - 1/2)."""

    def __init__(self, classes: int = 5):
        super().__init__()
        self.register_buffer(
            "w", torch.randn(classes, 108, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        )

    def forward(self, x):
        return (x - 0.5).flatten(1) @ self.w.to(x.dtype).T


def keyed_noise(keys, shape, dtype):
    """(b, *shape) standard normals that are a function of the keys."""
    return torch.special.ndtri(uniform(keys, tuple(shape), torch.float64) + 2.0**-25).to(dtype)


class BehindNoise(nn.Module):
    """A model behind Gaussian noise of the keys on its input: for a linear one, the mean logits are those without
    noise.
    """

    def __init__(self, model: nn.Module, sigma: float):
        super().__init__()
        self.model = model
        self.sigma = sigma
        self.seen = []

    def forward(self, x, keys=None):
        self.seen.append(keys)
        return self.model(x + self.sigma * keyed_noise(keys, x.shape[1:], x.dtype))


class NoisyGradient(nn.Module):
    """`Linear` plus s (x . n) with n of the keys: losses and gradients are noisy, their means those of the linear
    model.
    """

    def __init__(self, scale: float = 3.0):
        super().__init__()
        self.linear = Linear()
        self.scale = scale
        self.seen = []

    def forward(self, x, keys=None):
        self.seen.append(keys)
        noise = keyed_noise(keys, x.shape[1:], x.dtype)
        return self.linear(x) + self.scale * torch.einsum("bchw,bchw->b", x, noise)[:, None] * torch.tensor(
            [-0.5, 0.5], dtype=x.dtype
        )


@dataclass
class Inside:
    """See `attacks.protocols.Inside`."""

    result: Tensor
    noised: Tensor
    states: Tensor
    estimates: Tensor | None


class Purified(nn.Module):
    """A smooth classifier of 12 classes behind a purifier with noise of the keys: images (b, 3, 8, 8) of any precision.
    It has all that attacks may ask of a model.
    """

    def __init__(self, noise: float = 0.05):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(24, 192, generator=generator, dtype=torch.float64) / 4)
        self.second = nn.Parameter(torch.randn(12, 24, generator=generator, dtype=torch.float64))
        self.noise = noise

    def purifier(self, x, keys):
        return x + self.noise * keyed_noise(keys, x.shape[1:], x.dtype)

    def classifier(self, x):
        return torch.tanh((x - 0.5).flatten(1) @ self.first.to(x.dtype).T) @ self.second.to(x.dtype).T

    def forward(self, x, keys):
        return self.classifier(self.purifier(x, keys))

    def trajectory(self, x, keys, points, estimates):
        noisy = self.purifier(x, keys)
        shares = torch.linspace(0, 1, points, dtype=x.dtype)
        states = torch.stack([noisy + share * 0.3 * (torch.tanh(x) - noisy) for share in shares])
        noised = torch.stack([x + (1 - share) * (noisy - x) for share in shares])
        classes = torch.stack([self.classifier(state) for state in states[:-1]]) if estimates else None
        return Inside(self.classifier(noisy), noised, states, classes)


class Features(nn.Module):
    """Feature maps of images (b, 3, h, w)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 4, 3, padding=1)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3
            parameter.requires_grad_(False)

    def forward(self, x):
        return torch.tanh(self.net(x))


def small_attacks():
    """Every attack of the package by its class, so short that a test can run all of them; no image leaves early."""
    linf, near = attacks.Linf(0.03), attacks.FeatureDistance(Features(), 0.1)
    made = [
        attacks.PGD(linf, steps=3, eot=2, restarts=2),
        attacks.APGD(attacks.L2(0.3), iterations=5, eot=2, target_classes=2),
        attacks.FAB(attacks.L2(0.3), iterations=3, eot=2, target_classes=2, restarts=2),
        attacks.Square(linf, queries=60, eot=2),
        attacks.SPSA(linf, iterations=3, samples=8, restarts=2),
        attacks.DeviatedReconstruction(linf, iterations=4, eot=2, restarts=2, estimates=0.5),
        attacks.DiffHammer(linf, iterations=4, eot=3, restarts=2, gradients="grafted"),
        attacks.StAdv(0.02, iterations=3, eot=2, restarts=2),
        attacks.ReColorAdv(0.03, iterations=3, eot=2, restarts=2),
        attacks.LowFrequency(near, iterations=3, eot=2, restarts=2, kernels=((3, 3),)),
        attacks.PerceptualPGD(near, iterations=3, eot=2, restarts=2, cg_iterations=3),
        attacks.EOTAutoAttack(linf, iterations=4, eot=2, attacks=("apgd-ce", "fab"), stop_draws=0),
        attacks.Strongest(linf, 400, eot=2),
        attacks.AutoAttack(linf, "custom", ("apgd-ce",), iterations=3),
    ]
    return {type(attack): attack for attack in made}


def images(count: int = 6, seed: int = 1):
    """Images (count, 3, 6, 6), float64, near 1/2: `Linear`'s margins are small and the box does not bind."""
    return 0.5 + 0.05 * torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def box_images(count: int = 6, seed: int = 2):
    """Images (count, 3, 6, 6), float64, of which 2 in 5 pixels are 0 or 1: there the box binds."""
    x = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(x < 0.2, 0.0, torch.where(x > 0.8, 1.0, x))


def away(y):
    """(b, 3, 6, 6): the gradient of `Linear`'s margin."""
    return torch.where((y == 1)[:, None, None, None], -1.0, 1.0) * Linear().w


def worst(x, gradient, epsilon, norm):
    """The point of [0, 1]^n within `epsilon` of `x` (b, c, h, w) where a linear function of this gradient is largest.

    Linf: every pixel to the end of its interval. L2: x + clamp(t gradient) with t found by bisection, which the
    multiplier of the ball gives.
    """
    if norm == "Linf":
        return (x + epsilon * gradient.sign()).clamp(0, 1)
    low, high = torch.zeros(len(x), 1, 1, 1, dtype=x.dtype), torch.full((len(x), 1, 1, 1), 1e6, dtype=x.dtype)
    for _ in range(100):
        middle = (low + high) / 2
        inside = ((x + middle * gradient).clamp(0, 1) - x).flatten(1).norm(dim=1)[:, None, None, None] <= epsilon
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return (x + low * gradient).clamp(0, 1)


def nearest(x, gradient, gain, norm):
    """(b,): the distance from `x` to the nearest point of [0, 1]^n where the linear function has grown by `gain` (b,),
    by bisection along `worst` points.
    """
    direction = gradient.sign() if norm == "Linf" else gradient
    low, high = torch.zeros(len(x), 1, 1, 1, dtype=x.dtype), torch.full((len(x), 1, 1, 1), 1e3, dtype=x.dtype)
    for _ in range(100):
        middle = (low + high) / 2
        enough = (((x + middle * direction).clamp(0, 1) - x) * gradient).sum((1, 2, 3), keepdim=True) >= gain[
            :, None, None, None
        ]
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    change = ((x + high * direction).clamp(0, 1) - x).flatten(1)
    return change.abs().amax(1) if norm == "Linf" else change.norm(dim=1)


def classifier(count: int):
    """The packaged classifier, and so many of the packaged images (count, 1, 28, 28) float32 with their labels."""
    from benchmarks import load_classifier
    from benchmarks.datasets import load

    data = load("fashion-mnist-embedded")
    return load_classifier("fashion-mnist"), data.images[:count].float() / 255, data.labels[:count]
