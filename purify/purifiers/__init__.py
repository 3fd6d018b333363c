"""Published purification schemes, one file each."""

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

PURIFIERS: dict[str, type] = {
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
]
