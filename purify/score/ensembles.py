"""Several score networks seen as one."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from purify.score.labels import LabelRounding
from purify.score.model import ScoreModel


def ensemble(models: Sequence[ScoreModel], weights: Sequence[float] | None = None) -> ScoreModel:
    """The score model whose predicted noise, and so whose score, is the weighted mean of those of `models`.

    An evaluation of it is one of each member. Members may differ in what they predict and in how they label times.

    Args:
        models: at least one, of the same schedule, value range and image shape; class-conditional ones with a class
            chosen.
        weights: one for each model, above 0; divided by their sum. Equal by default.

    Returns:
        A score model that shares the members' networks, for times up to the smallest `t_max` among them.

    Raises:
        ValueError: no models, models that do not belong together or have no class, or weights that do not fit.
    """
    models = list(models)
    if not models or not all(isinstance(model, ScoreModel) for model in models):
        raise ValueError(f"ensemble needs one or more ScoreModels, got {[type(model).__name__ for model in models]}")
    for name in ("schedule", "value_range", "image_shape"):
        values = [getattr(model, name) for model in models]
        if any(value != values[0] for value in values):
            raise ValueError(f"ensemble needs models of the same {name}, got {', '.join(map(str, values))}")
    for model in models:
        model.check_class()
    weights = [1.0] * len(models) if weights is None else list(weights)
    if len(weights) != len(models) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights must be {len(models)} numbers above 0, one for each model, got {weights}")
    return _Ensemble(models, [weight / math.fsum(weights) for weight in weights])


class _Members(nn.ModuleList):
    """The members in the place of one network."""

    def __init__(self, models: Sequence[ScoreModel]):
        super().__init__(models)
        self.size_multiple = math.lcm(*(getattr(model.network, "size_multiple", 1) for model in models))

    def _get_name(self) -> str:
        return "ModuleList"  # what is printed is hashed to tell models apart


class _Ensemble(ScoreModel):
    """See `ensemble`; `weights` sum to 1."""

    def __init__(self, models: Sequence[ScoreModel], weights: Sequence[float]):
        first, t_max = models[0], min(model.t_max for model in models)
        super().__init__(
            _Members(models), first.schedule, "noise", first.image_shape, t_max=t_max, value_range=first.value_range
        )
        self.weights = tuple(weights)

    @property
    def members(self) -> list[ScoreModel]:
        """The models whose mean this is."""
        assert isinstance(self.network, _Members)
        return [model for model in self.network if isinstance(model, ScoreModel)]

    def forward(self, x: Tensor, t: float | Tensor, whole: bool = False) -> Tensor:
        """The weighted mean of the members' predicted noise; see `ScoreModel.forward`. `whole` changes nothing, as
        there is no more.
        """
        mean, *others = (weight * model.noise(x, t) for weight, model in zip(self.weights, self.members, strict=True))
        return sum(others, start=mean)

    # Past the hooks of nn.Module: forward hooks on score models count evaluations of networks, and those are the
    # members'.
    __call__ = forward

    def with_label_rounding(self, label_rounding: LabelRounding | None) -> ScoreModel:
        """See `ScoreModel.with_label_rounding`: of every member."""
        return _Ensemble([model.with_label_rounding(label_rounding) for model in self.members], self.weights)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights={self.weights}"
