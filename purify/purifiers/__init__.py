"""Published purification schemes, one file each."""

from purify.purifiers.base import Purifier
from purify.purifiers.diffpure import DiffPure
from purify.purifiers.langevin import Langevin
from purify.purifiers.resized import Resized

__all__ = ["DiffPure", "Langevin", "Purifier", "Resized"]
