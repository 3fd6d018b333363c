"""`purify models`: what is known, fetched, checked, converted and looked into. Functions return what is printed."""

from benchmarks.experiments.models.converting import convert
from benchmarks.experiments.models.fetching import ZOOS, fetch
from benchmarks.experiments.models.listing import overview, used_by
from benchmarks.experiments.models.looking_into import info
from benchmarks.experiments.models.names import ModelsError
from benchmarks.experiments.models.verifying import Verdict, verify

__all__ = ["ZOOS", "ModelsError", "Verdict", "convert", "fetch", "info", "overview", "used_by", "verify"]
