"""Checks of an attack's inputs, made once a call, before any work, and of its settings, made when they are given."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from attacks.losses import LOSSES

Settings = TypeVar("Settings")


def check_inputs(x: Tensor, y: Tensor, keys: Tensor | None = None) -> None:
    """Raises ValueError unless `x` is (b, c, h, w) finite in [0, 1], `y` (b,) non-negative int64 and `keys` (b,) int64
    or None.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(
            f"x must be floating-point images of shape (b, c, h, w), got {x.dtype} of shape {tuple(x.shape)}"
        )
    if not len(x):
        raise ValueError("x holds no images")
    if not x.isfinite().all():
        raise ValueError(
            f"x holds NaN or infinity in {int((~x.isfinite()).flatten(1).any(1).sum())} of {len(x)} images"
        )
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        raise ValueError(f"x must lie in [0, 1], got values in [{low:g}, {high:g}]")
    if y.shape != (len(x),) or y.dtype != torch.int64:
        raise ValueError(f"y must be int64 labels of shape ({len(x)},), got {y.dtype} of shape {tuple(y.shape)}")
    if y.device != x.device:
        raise ValueError(f"x and y must be on the same device, got {x.device} and {y.device}")
    if int(y.min()) < 0:
        raise ValueError(f"y must hold class indices from 0, got {int(y.min())}")
    if keys is not None and (keys.shape != y.shape or keys.dtype != torch.int64):
        raise ValueError(f"keys must be int64 of shape ({len(x)},), got {keys.dtype} of shape {tuple(keys.shape)}")


def check_targets(targets: Tensor | None, y: Tensor) -> None:
    """Raises ValueError unless `targets` is None or (b,) non-negative int64 on the labels' device, each another class
    than the label.
    """
    if targets is None:
        return
    if targets.shape != y.shape or targets.dtype != torch.int64:
        raise ValueError(
            f"targets must be int64 classes of shape ({len(y)},), got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    if targets.device != y.device:
        raise ValueError(f"targets and y must be on the same device, got {targets.device} and {y.device}")
    if int(targets.min()) < 0:
        raise ValueError(f"targets must hold class indices from 0, got {int(targets.min())}")
    same = int((targets == y).sum())
    if same:
        raise ValueError(f"targets must differ from the labels y, {same} of {len(y)} are equal")


def check_start(start: Tensor | None, x: Tensor, distance: Callable[[Tensor, Tensor], Tensor], epsilon: float) -> None:
    """Raises ValueError unless `start` is None or images like `x`, finite, in [0, 1], and within `epsilon` of it."""
    if start is None:
        return
    if start.shape != x.shape or start.dtype != x.dtype or start.device != x.device:
        raise ValueError(
            f"start must be images like x, {x.dtype} {tuple(x.shape)} on {x.device}, got {start.dtype}"
            f" {tuple(start.shape)} on {start.device}"
        )
    if not start.isfinite().all() or float(start.min()) < 0 or float(start.max()) > 1:
        raise ValueError("start must lie in [0, 1]")
    outside = int((distance(start, x) > epsilon * (1 + 1e-4)).sum())
    if outside:
        raise ValueError(f"start must lie within epsilon={epsilon:g} of x, {outside} of {len(x)} images do not")


def check_run_settings(settings: object) -> None:
    """Raises ValueError unless those of an attack's usual settings that it has are allowed: counts are integers from 1,
    `stop_draws` and `target_classes` integers from 0, and `loss` is the name of a loss.
    """
    check_positive_integers(settings, *(name for name in _COUNTS if _is_set(settings, name)))
    if _is_set(settings, "loss"):
        check_choice(settings, "loss", LOSSES)
    check_integers_from_zero(settings, *(name for name in _FROM_ZERO if _is_set(settings, name)))


_COUNTS = ("steps", "iterations", "queries", "budget", "samples", "eot", "restarts", "batch_size")
_FROM_ZERO = ("target_classes", "stop_draws")


def _is_set(settings: object, name: str) -> bool:
    """Whether there is such a setting, and it is not at a default of None."""
    if not hasattr(settings, name):
        return False
    return getattr(settings, name) is not None or getattr(type(settings), name, 0) is not None


def check_positive_integers(settings: object, *names: str) -> None:
    """Raises ValueError unless the attributes `names` are integers from 1."""
    _check_integers(settings, names, 1, "a positive integer")


def check_integers_from_zero(settings: object, *names: str) -> None:
    """Raises ValueError unless the attributes `names` are integers from 0."""
    _check_integers(settings, names, 0, "an integer from 0")


def check_positive(settings: object, *names: str) -> None:
    """Raises ValueError unless those of the attributes `names` that are not None are finite and positive."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, got {value}")


def check_from_zero(settings: object, *names: str) -> None:
    """Raises ValueError unless those of the attributes `names` that are not None are finite and at least 0."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a number from 0, got {value!r}")


def check_choice(settings: object, name: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless the attribute `name` is one of the choices."""
    value = getattr(settings, name)
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")


def check_choices(settings: object, name: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless all of the attribute `name` are among the choices."""
    for value in getattr(settings, name):
        if value not in choices:
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(choices)}")


def check_kind(settings: object, name: str, *kinds: type) -> None:
    """Raises ValueError unless the attribute `name` is of one of the classes."""
    value = getattr(settings, name)
    if not isinstance(value, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name} must be {expected}, got {type(value).__name__}")


def also_called(**names: str) -> Callable[[type[Settings]], type[Settings]]:
    """Decorates a dataclass whose constructor is to take some settings under other names too: `other="name"`.

    The constructor raises ValueError where a setting is given under both. Its signature keeps the settings' own names,
    and so do `repr`, comparison and `dataclasses.replace`. `other_names` of the class has them.
    """

    def decorate(cls: type[Settings]) -> type[Settings]:
        original = vars(cls)["__init__"]
        parameters = inspect.signature(original)

        @functools.wraps(original)
        def init(self: Settings, *args: Any, **kwargs: Any) -> None:
            for other in names.keys() & kwargs.keys():
                value = kwargs.pop(other)
                if names[other] in parameters.bind_partial(self, *args, **kwargs).arguments:
                    raise ValueError(f"{other} is another name of {names[other]}: give one of them")
                kwargs[names[other]] = value
            original(self, *args, **kwargs)

        type.__setattr__(cls, "__init__", init)
        type.__setattr__(cls, "other_names", names)
        return cls

    return decorate


def _check_integers(settings: object, names: tuple[str, ...], least: int, expected: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be {expected}, got {value!r}")
