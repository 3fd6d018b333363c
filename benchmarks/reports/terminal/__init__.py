"""What a person sees of results on a terminal, and the reading of the results themselves."""

from benchmarks.reports.curves import curves
from benchmarks.reports.terminal.audit import audit_tables
from benchmarks.reports.terminal.bench import estimate_table, paired_table, table
from benchmarks.reports.terminal.certify import certify_table
from benchmarks.reports.terminal.lines import budget_lines, diagnosis_lines, failure_lines, flag_lines
from benchmarks.reports.terminal.points import sweep_table
from benchmarks.reports.terminal.rivals import rivals_tables
from benchmarks.reports.text import percent, reduction_lines
from benchmarks.runs.schema import read_points, read_summary

__all__ = [
    "audit_tables",
    "budget_lines",
    "certify_table",
    "curves",
    "diagnosis_lines",
    "estimate_table",
    "failure_lines",
    "flag_lines",
    "paired_table",
    "percent",
    "read_points",
    "read_summary",
    "reduction_lines",
    "rivals_tables",
    "sweep_table",
    "table",
]
