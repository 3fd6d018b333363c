"""DiffPure's LD-SDE variant (Nie et al. 2022, arXiv 2205.07460, appendix): Langevin dynamics around the image, without
noising it first.
"""

from torch import Tensor

from purify.checks import check_count, check_not_negative, check_positive
from purify.gradients import GradientMode
from purify.purifiers.base import Path, Purifier, check_gradient
from purify.score.model import ScoreModel
from purify.solvers.sde import LangevinSDE
from purify.solvers.torchsde import SDESolver


class Langevin(Purifier):
    """Starts at the image and integrates `purify.solvers.sde.LangevinSDE`, whose drift pulls back to it: a guided
    scheme.

    The defaults are the published ones, by Euler; their length in pseudo-time is `steps * ds`.

    Args:
        score: the score model.
        steps: network evaluations.
        gradient: "exact", "backprop", "adjoint" or "bpda"; see `purify.gradients`. All but the last differentiate the
            pull towards the image too, which the published adjoint left out.
        ds: pseudo-time of a step.
        t: noise level at which the score is taken, in (0, score.t_max].
        lam: speed lambda of the dynamics.
        sigma2: variance sigma^2 of the pull towards the image, on the diffusion's scale.
        eta: factor of the noise.
        seed: of the fresh randomness of calls without keys.

    Raises:
        ValueError: an argument out of range or unknown, at construction.
    """

    def __init__(
        self,
        score: ScoreModel,
        steps: int = 100,
        gradient: GradientMode = "exact",
        *,
        ds: float = 1e-2,
        t: float = 1e-2,
        lam: float = 1e-2,
        sigma2: float = 1e-3,
        eta: float = 5.0,
        seed: int = 0,
    ):
        super().__init__(score, seed)
        check_count(steps=steps)
        if not 0 < t <= score.t_max:
            raise ValueError(f"t must lie in (0, t_max={score.t_max}], got {t}")
        check_positive(ds=ds, lam=lam, sigma2=sigma2)
        check_not_negative(eta=eta)
        check_gradient(gradient, has_adjoint=True)
        self.gradient = gradient
        self.steps = steps
        self.ds, self.t, self.lam, self.sigma2, self.eta = ds, t, lam, sigma2, eta

    def path(self, x: Tensor, keys: Tensor) -> Path:
        """See `Purifier.path`."""
        sde = LangevinSDE(self.score, self.steps, self.ds, self.t, self.lam, self.sigma2, self.eta)
        return Path(SDESolver(sde), lambda image, step: image, (self.t,) * (self.steps + 1))
