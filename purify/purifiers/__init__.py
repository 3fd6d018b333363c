"""Published purification schemes, one file each."""

from collections.abc import Callable
from typing import Any

from purify import plugins
from purify.purifiers.adp import ADP
from purify.purifiers.base import Purifier
from purify.purifiers.diffpure import DiffPure
from purify.purifiers.gradual import Gradual
from purify.purifiers.guided import GDMP
from purify.purifiers.langevin import Langevin
from purify.purifiers.likelihood import Likelihood
from purify.purifiers.one_shot import OneShot
from purify.purifiers.purify_plus_plus import PurifyPlusPlus
from purify.purifiers.resized import Resized
from purify.purifiers.sequential import Sequential

PURIFIERS: dict[str, Callable[..., Any]] = {
    "diffpure": DiffPure,
    "langevin": Langevin,
    "gdmp": GDMP,
    "gradual": Gradual,
    "purify++": PurifyPlusPlus,
    "one_shot": OneShot,
    "adp": ADP,
    "likelihood": Likelihood,
}
"""The schemes by their names in configurations; each is built as `PURIFIERS[name](score, **options)`."""


def find(name: str) -> Callable[..., Any]:
    """What makes the purifiers of a scheme, from (score, **options).

    Args:
        name: a name in `PURIFIERS`, or of a plug-in, see `purify.plugins`.

    Raises:
        ValueError: neither; a plug-in that cannot be used (`PluginError`).
    """
    if name in PURIFIERS:
        return PURIFIERS[name]
    if not plugins.is_plugin("purifiers", name):
        raise ValueError(f"{name!r} is not one of {', '.join(PURIFIERS)}, {plugins.FORM}")
    return plugins.load("purifiers", name, "a class or function that makes a purifier from (score, ...)")


__all__ = [
    "ADP",
    "GDMP",
    "PURIFIERS",
    "DiffPure",
    "Gradual",
    "Langevin",
    "Likelihood",
    "OneShot",
    "Purifier",
    "PurifyPlusPlus",
    "Resized",
    "Sequential",
    "find",
]
