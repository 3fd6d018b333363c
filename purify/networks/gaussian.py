"""The exact network of Gaussian data: an oracle for everything downstream of a network."""

from torch import Tensor, nn

from purify.schedules import Schedule


class GaussianNoise(nn.Module):
    """E[n | x_t] for data N(mean, std^2 I) on the diffusion's scale: sigma (x - alpha mean) / (alpha^2 std^2 +
    sigma^2).

    Being linear, it makes a purifier affine in the image, with a Jacobian, mean and covariance that can be written
    down.

    Args:
        schedule: the forward process.
        mean: of every pixel.
        std: of every pixel.
    """

    def __init__(self, schedule: Schedule, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        self.schedule = schedule
        self.mean = mean
        self.std = std

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: (b, c, h, w); t: (b,), continuous time. Returns the predicted noise, the shape of `x`."""
        t = t.double().reshape(-1, 1, 1, 1)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        gain = (sigma / (alpha**2 * self.std**2 + sigma**2)).to(x.dtype)
        return gain * (x - (alpha * self.mean).to(x.dtype))
