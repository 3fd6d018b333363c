"""Attacks that search for a transformation of the image whose every component is bounded."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from attacks.adam import AdamPath, Parameters
from attacks.inputs import check_from_zero, check_positive
from attacks.paths import Settings, attack_along
from attacks.randomness import OfSearch, derive, uniform
from attacks.task import Task


class BoundedSettings(Settings, Protocol):
    """What is read of such an attack."""

    @property
    def bound(self) -> float: ...
    @property
    def step_size(self) -> float: ...


def check_bounded(settings: BoundedSettings) -> None:
    """Raises ValueError unless `bound` and `step_size` are positive, and `smoothness` is None or from 0."""
    check_positive(settings, "bound", "step_size")
    check_from_zero(settings, "smoothness")


def transform(
    task: Task,
    settings: BoundedSettings,
    shape: tuple[int, ...],
    shift: tuple[int, ...],
    apply: Callable[[Parameters, Tensor], Tensor],
    examine: Callable[[Parameters, Tensor, Tensor], tuple[Tensor, Tensor]],
    finish: Callable[[Parameters, Tensor], Tensor] | None = None,
) -> Tensor:
    """Images under the transformation that Adam finds: parameters within `bound` of 0, the first run's from 0, those of
    restarts from one random shift of the whole image.

    Args:
        task: the call.
        settings: the attack.
        shape: of one image's parameters.
        shift: shape of a random shift, that broadcasts to `shape`.
        apply: as of `AdamPath`.
        examine: as of `AdamPath`.
        finish: as of `AdamPath`.
    """

    def path(rows: Tensor, keys: Tensor, restart: int) -> AdamPath:
        x, reach = task.x[rows], settings.bound if restart else 0
        begin = (2 * uniform(derive(keys, OfSearch.START), shift, x.dtype) - 1) * reach
        return AdamPath(
            x,
            [begin.expand(-1, *shape)],
            [settings.step_size],
            apply=apply,
            examine=examine,
            constrain=lambda parameters, of: [parameters[0].clamp(-settings.bound, settings.bound)],
            finish=finish,
        )

    return attack_along(task, settings, path)
