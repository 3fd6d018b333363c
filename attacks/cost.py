"""What an attack costs: images that went through the model, forward and backward, counted wherever this package calls a
model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Cost:
    """Images through the model: `forward` of them in all, of which `backward` were differentiated too."""

    forward: int = 0
    backward: int = 0


_counting: ContextVar[tuple[Cost, ...]] = ContextVar("counting", default=())


@contextmanager
def count_cost() -> Iterator[Cost]:
    """Yields a `Cost` that grows with every call of a model by an attack inside; nested counts each see their
    own part.
    """
    cost = Cost()
    token = _counting.set((*_counting.get(), cost))
    try:
        yield cost
    finally:
        _counting.reset(token)


def add_cost(images: int, differentiated: bool) -> None:
    """Adds one call of a model to every open count."""
    for cost in _counting.get():
        cost.forward += images
        cost.backward += images if differentiated else 0
