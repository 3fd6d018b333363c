"""ADDT, adversarial denoising diffusion training: denoising score matching whose noise is bent towards fooling a
classifier.

Liu et al. 2025, "Towards Understanding the Robustness of Diffusion-Based Purification: A Stochastic Perspective" (arXiv
2404.14309). Taken from it, with the numbers of its published code: the perturbation is found by gradients through the
one-step denoised image and the classifier (classifier-guided perturbation optimisation, CGPO), turned into a rearranged
Gaussian sample after every gradient (rank-based Gaussian mapping, RBGM), mixed into the noise by a ratio that depends
on the noise level, and the network then learns to denoise as usual, with fresh noise beside the perturbation.

What differs: any process, parametrisation and value range (the published code has its VP, EDM and DDPM versions side by
side, for images in [-1, 1]); noise levels and weighting are those of the other objectives; pixels with equal gradients
are ordered at random, where a sort would lay them out as a ramp.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purify.checks import check_positive
from purify.schedules import noise_to_signal
from purify.score.model import ScoreModel
from purify.training.objectives import (
    Loss,
    Times,
    Weighting,
    as_score_model,
    check_weighting,
    denoising_loss,
    draw_batch,
)


@dataclass(frozen=True)
class Perturbation:
    """How noise is perturbed; the defaults are those of the published code.

    Attributes:
        rounds: gradients of the classifier for each step of the training, each with fresh noise; they add up.
        strength: standard deviation of the perturbation in the image x_t / alpha, for images in [-1, 1].
        largest: of the perturbation's share of the noise, as a ratio of standard deviations; what limits the strength
            where the noise is small.
    """

    rounds: int = 5
    strength: float = 0.03
    largest: float = 0.3

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        check_positive(strength=self.strength)
        if not 0 < self.largest <= 1:
            raise ValueError(f"largest must lie in (0, 1], got {self.largest}")

    def ratio(self, model: ScoreModel, t: Tensor) -> Tensor:
        """(b, 1, 1, 1) float32: gamma = min(strength alpha / sigma, largest) at times (b,), with the strength in units
        of half the model's value range.
        """
        low, high = model.value_range
        gamma = self.strength * (high - low) / 2 / noise_to_signal(model.schedule, t.double())
        return gamma.clamp(max=self.largest).float().reshape(-1, 1, 1, 1)


def adversarial_denoising(
    times: Times,
    classifier: nn.Module,
    perturbation: Perturbation | None = None,
    flip: bool = False,
    weighting: Weighting = "simple",
) -> Loss:
    """ADDT's loss: `denoising_score_matching` with the noise sqrt(1 - gamma^2) n + gamma delta, where delta is an
    `adversarial_perturbation`.

    A step takes `rounds` gradients through network and classifier besides its own.

    Args:
        times: distribution of t.
        classifier: images (b, c, h, w) in [0, 1] -> logits (b, classes), in evaluation mode, on the device of the
            training; never altered.
        perturbation: see `Perturbation`; None for its defaults.
        flip: whether each image is mirrored with probability 1/2.
        weighting: see `purify.training.objectives.weights`.

    Raises:
        ValueError: a classifier in training mode, or an unknown weighting; and when called, times beyond the model's
            `t_max`.
    """
    check_weighting(weighting)
    if classifier.training:
        raise ValueError(
            "classifier is in training mode, in which every call would alter its running statistics: give"
            " classifier.eval()"
        )
    settings = perturbation or Perturbation()

    def loss(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        model = as_score_model(model)
        x0, noise, t = draw_batch(model, images, times, flip, generator)
        delta = adversarial_perturbation(model, classifier, x0, labels, t, settings, generator)
        return denoising_loss(model, x0, mixed(noise, delta, settings.ratio(model, t)), t, weighting)

    return loss


def mixed(noise: Tensor, delta: Tensor, gamma: Tensor) -> Tensor:
    """sqrt(1 - gamma^2) noise + gamma delta: of unit variance, as both parts are and `noise` is independent."""
    return (1 - gamma.square()).sqrt() * noise + gamma * delta


def adversarial_perturbation(
    model: ScoreModel,
    classifier: nn.Module,
    x0: Tensor,
    labels: Tensor,
    t: Tensor,
    settings: Perturbation,
    generator: torch.Generator,
) -> Tensor:
    """A rearranged standard normal sample that, as part of the noise, raises the classifier's loss on the one-step
    denoised image: CGPO.

    In every round the gradient of the cross-entropy with respect to delta is added to those before, and delta becomes a
    fresh normal sample in the order of their sum. The network is that of the moment, and is not trained by this.

    Args:
        model: whose `denoised` is attacked.
        classifier: images (b, c, h, w) in [0, 1] -> logits (b, classes).
        x0: (b, c, h, w), in the model's `value_range`.
        labels: (b,) int64.
        t: (b,).
        settings: see `Perturbation`.
        generator: of all noise.

    Returns:
        The shape of `x0`, detached.
    """
    gamma = settings.ratio(model, t)
    delta = torch.randn(x0.shape, generator=generator).to(x0.device)
    total = torch.zeros_like(delta)
    for _ in range(settings.rounds):
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        with torch.enable_grad():
            delta.requires_grad_()
            x_t = model.diffuse(x0, mixed(noise, delta, gamma), t)
            logits = classifier(model.to_unit(model.denoised(x_t, t)))
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), labels, reduction="sum"), delta)
        total = total + gradient
        delta = rank_based_gaussian_mapping(total, generator)
    return delta


def rank_based_gaussian_mapping(values: Tensor, generator: torch.Generator) -> Tensor:
    """A standard normal sample in the order of `values`, in each channel of each image: its largest number stands where
    the largest value does (RBGM).

    Sorted, the result is an independent N(0, 1) sample whatever `values` are; only the places are theirs. Equal values
    are ordered at random.

    Args:
        values: (b, c, h, w).
        generator: of the sample.

    Returns:
        The shape of `values`, float32, on their device.
    """
    flat = values.flatten(2)
    normal = torch.randn(flat.shape, generator=generator).sort(-1).values.to(values.device)
    shuffle = torch.rand(flat.shape, generator=generator).argsort(-1).to(values.device)
    order = shuffle.gather(-1, flat.gather(-1, shuffle).argsort(dim=-1, stable=True))
    return torch.empty_like(normal).scatter_(-1, order, normal).reshape(values.shape)
