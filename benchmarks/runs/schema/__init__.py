"""What runs write, as models: one file a command, read from files of this version and of all before it.

Readers ignore keys that they do not know and refuse a schema that they do not know; what is written is exactly what
was given, in the order of the fields.
"""

from benchmarks.runs.schema.audit import AuditResult
from benchmarks.runs.schema.bench import BatchFacts, Budget, ImageLine, Paired, Probe, Result, Summary
from benchmarks.runs.schema.card import CardNumbers, TrainingLine
from benchmarks.runs.schema.certify import CertifyImageLine, CertifySummary, CountsBatch
from benchmarks.runs.schema.points import MeasuredPoint, Point, PointRow, Points
from benchmarks.runs.schema.reading import read, read_lines, read_points, read_summary
from benchmarks.runs.schema.record import Record
from benchmarks.runs.schema.rivals import RivalsResult
from benchmarks.runs.schema.writing import write, write_lines

__all__ = [
    "AuditResult",
    "BatchFacts",
    "Budget",
    "CardNumbers",
    "CertifyImageLine",
    "CertifySummary",
    "CountsBatch",
    "ImageLine",
    "MeasuredPoint",
    "Paired",
    "Point",
    "PointRow",
    "Points",
    "Probe",
    "Record",
    "Result",
    "RivalsResult",
    "Summary",
    "TrainingLine",
    "read",
    "read_lines",
    "read_points",
    "read_summary",
    "write",
    "write_lines",
]
