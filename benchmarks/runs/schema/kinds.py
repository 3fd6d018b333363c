"""All that is written, by name, and its JSON Schemas."""

import json
from pathlib import Path
from typing import Any

from benchmarks.runs.schema.audit import AuditResult
from benchmarks.runs.schema.bench import BatchFacts, Budget, ImageLine, Summary
from benchmarks.runs.schema.card import CardNumbers, TrainingLine
from benchmarks.runs.schema.certify import CertifyImageLine, CertifySummary, CountsBatch
from benchmarks.runs.schema.points import Points
from benchmarks.runs.schema.record import Record
from benchmarks.runs.schema.rivals import RivalsResult

KINDS: dict[str, type[Record]] = {
    "audit": AuditResult,
    "bench-batch": BatchFacts,
    "bench-budget": Budget,
    "bench-image": ImageLine,
    "bench-summary": Summary,
    "card": CardNumbers,
    "certify-batch": CountsBatch,
    "certify-image": CertifyImageLine,
    "certify-summary": CertifySummary,
    "points": Points,
    "rivals": RivalsResult,
    "train-log": TrainingLine,
}


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a kind."""
    kind = KINDS[name]
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "version": kind.VERSION}
    return about | kind.model_json_schema(by_alias=True)


def write_json_schemas(folder: Path) -> None:
    """Writes NAME.json of every kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in KINDS:
        (folder / f"{name}.json").write_text(json.dumps(json_schema(name), indent=2) + "\n")
