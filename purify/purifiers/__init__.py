"""Published purification schemes, one file each."""

from purify.purifiers.base import Purifier
from purify.purifiers.diffpure import DiffPure

__all__ = ["DiffPure", "Purifier"]
