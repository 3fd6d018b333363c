"""A purifier of one's own: a class whose constructor takes the score model, and the keys of its section."""

from torch import Tensor

from purify import Purifier, ScoreModel
from purify.noise import Stage, standard_normal


class Blend(Purifier):
    """Mixes an image with what the network expects behind noise that is added to it.

    Args:
        score: the score model.
        t: noise level, in (0, score.t_max].
        weight: of the network's image, in [0, 1].
        seed: of the fresh randomness of calls without keys.
    """

    def __init__(self, score: ScoreModel, t: float = 0.1, weight: float = 0.5, *, seed: int = 0):
        super().__init__(score, seed)
        if not 0 < t <= score.t_max:
            raise ValueError(f"t must lie in (0, {score.t_max:g}], got {t}")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must lie in [0, 1], got {weight}")
        self.t = t
        self.weight = weight

    def purify(self, x: Tensor, keys: Tensor) -> Tensor:
        """See `Purifier.purify`: x (b, c, h, w) on the diffusion's scale, keys (b,)."""
        schedule = self.score.schedule
        noise = standard_normal(keys, Stage.FORWARD, 0, tuple(x.shape[1:]), x.dtype)
        noised = schedule.alpha(self.t) * x + schedule.sigma(self.t) * noise
        return (1 - self.weight) * x + self.weight * self.score.denoised(noised, self.t)
