"""Checks of settings, given by keyword so that the message names the argument: `check_positive(snr=snr)`."""

import math
import numbers
from collections.abc import Collection


def check_positive(**values: float) -> None:
    """Raises ValueError unless every value is a finite number above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, got {value}")


def check_not_negative(**values: float) -> None:
    """Raises ValueError unless every value is a finite number from 0."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0, got {value}")


def check_count(**values: int) -> None:
    """Raises ValueError unless every value is an integer from 1."""
    for name, value in values.items():
        if not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_choice(known: Collection[object], **values: object) -> None:
    """Raises ValueError unless every value is one of `known`."""
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(str, known))}")
