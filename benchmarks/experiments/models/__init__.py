"""`purify models`: what is known, fetched, checked, converted and looked into. Functions return what is printed."""

from benchmarks.experiments.models.converting import convert
from benchmarks.experiments.models.fetching import ZOOS, fetch
from benchmarks.experiments.models.listing import Known, known, overview, used_by
from benchmarks.experiments.models.looking_into import info, info_lines, look_into
from benchmarks.experiments.models.names import ModelsError
from benchmarks.experiments.models.verifying import Verdict, verify

__all__ = [
    "ZOOS",
    "Known",
    "ModelsError",
    "Verdict",
    "convert",
    "fetch",
    "info",
    "info_lines",
    "known",
    "look_into",
    "overview",
    "used_by",
    "verify",
]
