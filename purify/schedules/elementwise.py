"""Functions of a number that is a float or a tensor, and stays what it is."""

import math
from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor, float | Tensor)
"""A float or a tensor of any shape. What takes one returns the same kind, elementwise; where it is not known which of
the two came in, the answer is either.
"""


def exp(x: Number) -> Number:
    return x.exp() if isinstance(x, Tensor) else math.exp(x)


def expm1(x: Number) -> Number:
    return x.expm1() if isinstance(x, Tensor) else math.expm1(x)


def log(x: Number) -> Number:
    """-inf at 0, for floats too."""
    if isinstance(x, Tensor):
        return x.log()
    return math.log(x) if x else -math.inf


def log1p(x: Number) -> Number:
    return x.log1p() if isinstance(x, Tensor) else math.log1p(x)


def asinh(x: Number) -> Number:
    return x.asinh() if isinstance(x, Tensor) else math.asinh(x)


def sqrt(x: Number) -> Number:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


def reciprocal(x: Number) -> Number:
    """Infinite at 0, for floats too."""
    if isinstance(x, Tensor):
        return x.reciprocal()
    return 1 / x if x else math.inf
