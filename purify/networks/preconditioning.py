"""EDM's preconditioning, which makes a denoiser of a network (Karras et al. 2022, arXiv 2206.00364, table 1)."""

from dataclasses import dataclass
from typing import Generic

from purify.schedules.elementwise import Number, log, sqrt


@dataclass(frozen=True)
class Preconditioning(Generic[Number]):
    """EDM's four functions of the noise level, see `preconditioning`."""

    c_skip: Number
    c_out: Number
    c_in: Number
    c_noise: Number


def preconditioning(sigma_rel: Number, sigma_data: float = 0.5) -> Preconditioning[Number]:
    """EDM's denoiser D = c_skip y + c_out F(c_in y; c_noise) of the image y = x / alpha (Karras et al. 2022, table 1).

    F then has inputs and training targets of unit variance at every noise level.

    Args:
        sigma_rel: standard deviation of the noise in y, sigma / alpha, a float or a tensor.
        sigma_data: standard deviation of the clean images.

    Returns:
        Floats, or tensors of the shape of `sigma_rel`.
    """
    total = sigma_rel**2 + sigma_data**2
    return Preconditioning(
        sigma_data**2 / total, sigma_rel * sigma_data / sqrt(total), 1 / sqrt(total), log(sigma_rel) / 4
    )
