"""The preconditioning that makes denoisers D(x; sigma) of EDM's U-Nets (Karras et al. 2022, arXiv 2206.00364, table
1).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from purify.networks.edm.unets import DhariwalUNet, SongUNet
from purify.networks.preconditioning import preconditioning

_MODELS: dict[str, Callable[..., SongUNet | DhariwalUNet]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


class _Precond(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), sigma (b,); `coefficients` says which."""

    def __init__(self, img_resolution: int, img_channels: int, label_dim: int, model_type: str, model: dict[str, Any]):
        super().__init__()
        if model_type not in _MODELS:
            raise ValueError(f"model_type={model_type!r} is not one of {', '.join(_MODELS)}")
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.model = _MODELS[model_type](
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=img_channels,
            label_dim=label_dim,
            **model,
        )
        self.size_multiple = self.model.size_multiple

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        """c_skip, c_out, c_in, c_noise for `sigma` (b, 1, 1, 1)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={value}"
            for name, value in vars(self).items()
            if isinstance(value, int | float) and not name.startswith("_")
        )

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The denoised image E[x_0 | x] for x = x_0 + sigma noise, (b, c, h, w); `class_labels` (b,) int64 or one-hot
        (b, label_dim), zeros where None.
        """
        sigma = sigma.to(x.dtype).reshape(-1, 1, 1, 1)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        if self.label_dim and class_labels is None:
            class_labels = x.new_zeros(len(x), self.label_dim)
        elif class_labels is not None and class_labels.ndim == 1:
            class_labels = F.one_hot(class_labels, self.label_dim).to(x.dtype)
        output: Tensor = self.model(c_in * x, c_noise.flatten().expand(len(x)), class_labels)
        return c_skip * x + c_out * output


class EDMPrecond(_Precond):
    """EDM's own preconditioning."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model: Any,
    ):
        super().__init__(img_resolution, img_channels, label_dim, model_type, model)
        self.sigma_data = sigma_data

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `_Precond.coefficients`."""
        known = preconditioning(sigma, self.sigma_data)
        return known.c_skip, known.c_out, known.c_in, known.c_noise


class VPPrecond(_Precond):
    """score_sde's VP preconditioning, in terms of sigma / alpha."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        model_type: str = "SongUNet",
        **model: Any,
    ):
        super().__init__(img_resolution, img_channels, label_dim, model_type, model)
        del epsilon_t  # of training only
        self.beta_d, self.beta_min, self.M = beta_d, beta_min, M

    def coefficients(self, sigma: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
        """See `_Precond.coefficients`."""
        t = ((self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt() - self.beta_min) / self.beta_d
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1) * t


class VEPrecond(_Precond):
    """score_sde's VE preconditioning."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        model_type: str = "SongUNet",
        **model: Any,
    ):
        super().__init__(img_resolution, img_channels, label_dim, model_type, model)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def coefficients(self, sigma: Tensor) -> tuple[float, Tensor, float, Tensor]:
        """See `_Precond.coefficients`."""
        return 1.0, sigma, 1.0, (0.5 * sigma).log()
