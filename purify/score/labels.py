"""What networks call their times."""

from typing import Literal, get_args

import torch
from torch import Tensor

from purify.schedules import Schedule, noise_to_signal
from purify.schedules.elementwise import Number

TimeLabel = Literal["t", "sigma"]
LabelRounding = Literal["floor", "nearest"]


def check_rounding(rounding: LabelRounding | None, kind: TimeLabel, prediction: str) -> LabelRounding | None:
    """The rounding itself. Raises ValueError for one that is unknown, or of labels that are not counted."""
    if rounding not in (None, *get_args(LabelRounding)):
        raise ValueError(f"label_rounding={rounding!r} is not one of None, {', '.join(get_args(LabelRounding))}")
    if kind == "sigma" and rounding is not None:
        raise ValueError('label_rounding goes with time_label="t"; labels of "sigma" are not counted')
    if prediction == "edm" and rounding is not None:
        raise ValueError('prediction="edm" has labels that are not counted: label_rounding does not go with it')
    return rounding


def time_label(
    schedule: Schedule, t: Number, kind: TimeLabel, scale: float, offset: float, rounding: LabelRounding | None
) -> float | Tensor:
    """The label of the time `t`, of its kind and shape; the arguments are those of `ScoreModel`."""
    if kind == "sigma":
        return noise_to_signal(schedule, wide(t))
    if rounding == "floor":
        # in float32, where DiffPure counts
        single = (scale * torch.as_tensor(t, dtype=torch.float32)).floor()
        return single if isinstance(t, Tensor) else float(single)
    label = scale * t + offset
    if rounding == "nearest":
        return label.round() if isinstance(label, Tensor) else round(label)
    return label


def wide(t: Number) -> Number:
    """Times in float64."""
    return t.double() if isinstance(t, Tensor) else t
