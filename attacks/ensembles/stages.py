"""How each attack of the adaptive ensemble is fitted into an allowance of evaluations."""

import bisect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from attacks.gradient.apgd import APGD
from attacks.gradient.ascent import checkpoints
from attacks.gradient.deviated import DeviatedReconstruction
from attacks.gradient.fab import FAB
from attacks.gradient.hammer import DiffHammer
from attacks.gradient.pgd import PGD
from attacks.query.square import Square
from attacks.threats import Threat


class Shape(NamedTuple):
    """What all attacks of one call have in common."""

    threat: Threat
    eot: int
    random: bool
    stop_draws: int
    batch_size: int
    targeted: bool
    shows_states: bool
    least_draws: int = 1
    """Per gradient: an attack of fewer is not worth its cost."""


class Stage(NamedTuple):
    """How one attack is fitted into an allowance."""

    weight: float
    """Share of the budget, relative to the other stages."""
    plan: Callable[[Shape, float], Any]
    """(what is common, evaluations per image) -> the attack, or None where that is too little."""
    goes_on: bool = False
    """Whether it starts at the best example so far."""
    fits: Callable[[Shape], bool] = lambda shape: True
    """Whether it is of use."""


class Price(Protocol):
    """Evaluations for each image."""

    def __call__(self, iterations: int, eot: int) -> float: ...


def _fit(shape: Shape, allowance: float, price: Price, most: int = 100) -> dict[str, Any] | None:
    """Iterations and draws: as many draws as 10 iterations can have, then as many iterations as can be paid; at the
    least 3, where one draw is enough.
    """
    for eot in range(shape.eot, shape.least_draws - 1, -1):
        iterations = bisect.bisect_right(range(most + 1), allowance, key=partial(price, eot=eot)) - 1
        if iterations >= (10 if eot > 1 else 3):
            return {"iterations": iterations, "eot": eot}
    return None


def _climbing(shape: Shape) -> Price:
    """What a run of APGD costs for each image, results of earlier runs judged with it."""
    return lambda iterations, eot: (
        eot * (3 * iterations + (6 + 4 * len(checkpoints(iterations, apart=4)) if shape.random else 4))
    )


def _common(shape: Shape) -> dict[str, Any]:
    return {"threat": shape.threat, "stop_draws": shape.stop_draws, "batch_size": shape.batch_size}


def _pgd(most: int) -> Callable[[Shape, float], PGD | None]:
    def plan(shape: Shape, allowance: float) -> PGD | None:
        found = _fit(shape, allowance, lambda iterations, eot: 3 * iterations * eot, most)
        return PGD(steps=found["iterations"], eot=found["eot"], loss="margin", **_common(shape)) if found else None

    return plan


def _apgd(shape: Shape, allowance: float) -> APGD | None:
    found = _fit(shape, allowance, _climbing(shape))
    return APGD(**found, **_common(shape)) if found else None


def _apgd_targeted(shape: Shape, allowance: float) -> APGD | None:
    """As many of the 9 likely classes as get 10 iterations each; where a call gives the targets, the margin to them."""
    for classes in () if shape.targeted else (9, 6, 4, 2):
        found = _fit(shape, (allowance - shape.eot) / classes, _climbing(shape))
        if found and found["iterations"] >= 10 and found["eot"] >= min(shape.eot, 4):
            return APGD(**found, target_classes=classes, **_common(shape))
    found = _fit(shape, allowance, _climbing(shape))
    return APGD(**found, loss="margin", **_common(shape)) if found else None


def _hammer(shape: Shape, allowance: float) -> DiffHammer | None:
    found = _fit(shape, allowance, _climbing(shape))
    return DiffHammer(**found, **_common(shape)) if found else None


def _deviated(shape: Shape, allowance: float) -> DeviatedReconstruction | None:
    found = _fit(shape, allowance, _climbing(shape))
    return DeviatedReconstruction(**found, **_common(shape)) if found else None


def _fab(shape: Shape, allowance: float) -> FAB | None:
    """As many classes as get 10 iterations and the final search."""
    for classes in (1,) if shape.targeted else (9, 4, 2, 1):
        found = _fit(shape, allowance / classes, lambda iterations, eot: eot * (4 * iterations + 180))
        if found and found["iterations"] >= 10:
            return FAB(**found, target_classes=classes, **_common(shape))
    return None


def _square(shape: Shape, allowance: float) -> Square | None:
    return (
        Square(queries=min(int(allowance), 5000), eot=shape.eot, **_common(shape))
        if allowance >= 20 * shape.eot
        else None
    )


STAGES = {
    "pgd-short": Stage(1, _pgd(10)),
    "pgd": Stage(2, _pgd(100), goes_on=True),
    "apgd-ce": Stage(3, _apgd),
    "apgd-t": Stage(4, _apgd_targeted),
    "hammer": Stage(3, _hammer, fits=lambda shape: shape.random),
    "deviated": Stage(3, _deviated, goes_on=True, fits=lambda shape: shape.shows_states),
    "fab-t": Stage(2, _fab),
    "square": Stage(1, _square, goes_on=True),
}
"""By name, from cheap to expensive."""
