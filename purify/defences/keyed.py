"""Which models draw their randomness from keys that they are handed."""

import inspect
from collections.abc import Callable
from typing import Any


def takes_keys(model: Callable[..., Any]) -> bool:
    """Whether a module's `forward`, or a function, has a parameter `keys`: (b,) int64 that fix the randomness of each
    image.
    """
    try:
        return "keys" in inspect.signature(getattr(model, "forward", model)).parameters
    except (TypeError, ValueError):  # built in or compiled, without a signature
        return False
