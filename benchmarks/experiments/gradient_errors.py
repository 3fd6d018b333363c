"""How far a gradient is from the true one."""

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.runs.schema.audit import CosineSpread, ErrorSpread, GradientError
from purify.purifiers import Purifier


def compare(gradient: Tensor, truth: Tensor) -> GradientError:
    """How far `gradient` is from `truth`, both (b, c, h, w)."""
    gradient, truth = gradient.double().flatten(1), truth.flatten(1)
    errors = (gradient - truth).norm(dim=1) / truth.norm(dim=1)
    cosines = F.cosine_similarity(gradient, truth, dim=1, eps=1e-300)
    return GradientError(
        relative_error=float((gradient - truth).norm() / truth.norm()),
        relative_error_images=ErrorSpread(median=float(errors.median()), max=float(errors.max())),
        cosine=CosineSpread(median=float(cosines.median()), min=float(cosines.min()), max=float(cosines.max())),
        sign_agreement=float((gradient.sign() == truth.sign()).double().mean()),
        zero=float((gradient == 0).all(1).double().mean()),
        not_finite=float((~gradient.isfinite()).any(1).double().mean()),
    )


def pull_back(purifier: Purifier, x: Tensor, keys: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of sum(purifier(x) * cotangent)."""
    x = x.clone().requires_grad_()
    value = purifier(x, keys)
    (gradient,) = torch.autograd.grad(value, x, cotangent)
    return value.detach(), gradient


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(b,): the scalar product of each image of `a` with that of `b`."""
    return (a * b).flatten(1).sum(1)
