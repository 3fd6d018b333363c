"""YAML to objects: files, sections, and what a section's keys mean."""

from benchmarks.config.files import check_same, configs_folder, dump, find, known, load, load_values, read, set_value
from benchmarks.config.sections import ConfigError, Section, validate

__all__ = [
    "ConfigError",
    "Section",
    "check_same",
    "configs_folder",
    "dump",
    "find",
    "known",
    "load",
    "load_values",
    "read",
    "set_value",
    "validate",
]
