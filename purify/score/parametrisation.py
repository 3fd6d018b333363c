"""What a diffusion network may predict, and how each of these follows from any other.

With x = alpha x_0 + sigma n: the "noise" n; the "score" -n / sigma; the clean image "x0"; "v" = alpha n - sigma x_0
(Salimans & Ho 2022, arXiv 2202.00512); and "edm", the raw output F of a network inside EDM's preconditioning (Karras et
al. 2022, arXiv 2206.00364, eq. 7).
"""

from typing import Literal, get_args

from torch import Tensor

from purify.networks.preconditioning import Preconditioning as Preconditioning
from purify.networks.preconditioning import preconditioning
from purify.schedules.elementwise import sqrt

Prediction = Literal["noise", "score", "x0", "v", "edm"]


def convert(
    output: Tensor,
    x: Tensor,
    alpha: float | Tensor,
    sigma: float | Tensor,
    source: Prediction,
    target: Prediction,
    sigma_data: float = 0.5,
) -> Tensor:
    """What a network would return as `target`, given what one returned as `source` for the same noisy image.

    An expectation of one given x is that of the other, so this holds for predictions as for true values.

    Args:
        output: (b, c, h, w), of the kind `source`.
        x: (b, c, h, w), distributed like alpha x_0 + sigma n.
        alpha: factor of the data in `x`, above 0, that broadcasts against it.
        sigma: standard deviation of the noise in `x`, above 0, likewise.
        source: kind of `output`.
        target: kind of the result.
        sigma_data: standard deviation of the clean images; for "edm" only.

    Returns:
        (b, c, h, w); `output` itself where both kinds are the same.

    Raises:
        ValueError: an unknown kind.
    """
    check("source", source)
    check("target", target)
    if source == target:
        return output
    match target:
        case "noise":
            return _noise(output, x, alpha, sigma, source, sigma_data)
        case "score":
            return _noise(output, x, alpha, sigma, source, sigma_data) / -sigma
        case "x0":
            return _x0(output, x, alpha, sigma, source, sigma_data)
    x0, noise = _x0(output, x, alpha, sigma, source, sigma_data), _noise(output, x, alpha, sigma, source, sigma_data)
    return from_parts(x0, noise, alpha, sigma, target, sigma_data)


def from_parts(
    x0: Tensor, noise: Tensor, alpha: float | Tensor, sigma: float | Tensor, target: Prediction, sigma_data: float = 0.5
) -> Tensor:
    """What a network that predicts `target` should return for alpha x0 + sigma noise; arguments as for `convert`."""
    match target:
        case "noise":
            return noise
        case "score":
            return noise / -sigma
        case "x0":
            return x0
        case "v":
            return alpha * noise - sigma * x0
    # (x0 - c_skip x / alpha) / c_out, without its difference of two nearly equal images at low noise.
    sigma_rel = sigma / alpha
    return (sigma_rel / sigma_data * x0 - sigma_data * noise) / sqrt(sigma_rel**2 + sigma_data**2)


def check(name: str, prediction: str) -> None:
    """Raises ValueError unless `prediction`, the argument `name`, is one of those known here."""
    if prediction not in get_args(Prediction):
        raise ValueError(f"{name}={prediction!r} is not one of {', '.join(get_args(Prediction))}")


def _noise(
    output: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, source: Prediction, sigma_data: float
) -> Tensor:
    match source:
        case "noise":
            return output
        case "score":
            return -sigma * output
        case "x0":
            return (x - alpha * output) / sigma
        case "v":
            return (sigma * x + alpha * output) / (alpha**2 + sigma**2)
    # (x / alpha - D) / sigma_rel, likewise.
    sigma_rel = sigma / alpha
    total = sigma_rel**2 + sigma_data**2
    return sigma_rel / total * (x / alpha) - sigma_data / sqrt(total) * output


def _x0(
    output: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, source: Prediction, sigma_data: float
) -> Tensor:
    match source:
        case "x0":
            return output
        case "v":
            return (alpha * x - sigma * output) / (alpha**2 + sigma**2)
        case "edm":
            p = preconditioning(sigma / alpha, sigma_data)
            return p.c_skip * (x / alpha) + p.c_out * output
    return (x - sigma * _noise(output, x, alpha, sigma, source, sigma_data)) / alpha
