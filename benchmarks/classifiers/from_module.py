"""A user's own classifier by the name "module:path.to.module:factory" or "module:path/to/file.py:factory", see
`purify.plugins`.
"""

from torch import nn

from benchmarks.classifiers.request import Request
from purify import plugins

_MODULE = "a torch.nn.Module from images in [0, 1] to logits"
_EXPECTED = "a function without arguments that returns a torch.nn.Module"


def load(request: Request) -> nn.Module:
    """What the factory returns; the user's code runs.

    Raises:
        ValueError: weights are asked for.
        PluginError: no such module or file, it fails, no such name, not callable, it raises, or it returns something
            else than a module.
    """
    return load_named(f"{plugins.PREFIX}{request.name}", request)


def load_named(name: str, request: Request) -> nn.Module:
    """As `load`, by the complete name, which may be an entry point's."""
    if request.weights is not None:
        raise ValueError(f"weights={request.weights!r}: {name} loads its own weights; let the function do it")
    make = plugins.load("classifiers", name, _EXPECTED)
    model: nn.Module = plugins.call(name, make, nn.Module, _MODULE)
    return model
