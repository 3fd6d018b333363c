"""Everything that is written, as models: files of this version and of earlier ones, and the JSON Schemas."""

import json
from pathlib import Path

import pytest

from benchmarks.evaluation.statistics import Estimate
from benchmarks.runs.folder import RunError
from benchmarks.runs.schema import (
    BatchFacts,
    CardNumbers,
    CertifySummary,
    MeasuredPoint,
    Points,
    Summary,
    read,
    read_lines,
    read_points,
    read_summary,
)
from benchmarks.runs.schema.audit import AuditResult
from benchmarks.runs.schema.bench import ImageLine
from benchmarks.runs.schema.kinds import KINDS, json_schema
from benchmarks.runs.schema.rivals import RivalsResult

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"
OF_FILE = {
    "audit.json": AuditResult,
    "card.json": CardNumbers,
    "compare.json": Points,
    "rivals.json": RivalsResult,
    "sweep.json": Points,
}
FILES = sorted(RESULTS.rglob("*.json"))

OLDEST = {
    "schema": 1,
    "seed": 0,
    "images": 4,
    "draws": 2,
    "complete": True,
    "results": [
        {
            "model": "defended",
            "attack": "pgd",
            "threat": "Linf 0.1",
            "single": {"value": 0.5, "ci95": [0.25, 0.75]},
            "worst_of": {"2": {"value": 0.25, "ci95": [0.0, 0.5]}},
            "majority": {"2": {"value": 0.5, "ci95": [0.2, 0.8]}},
            "seconds": 1.5,
            "network_evaluations": 16,
            "gradient": "exact",
            "t_star": 0.1,
            "steps": 2,
            "solver": "torchsde",
            "method": "euler",
            "iterations": 3,
            "eot": 1,
            "restarts": 1,
            "warnings": [],
            "seeds": {"evaluation": 0, "attack": 0, "attack_draw": 4294967295},
        }
    ],
}
"""A summary with what the first ones had."""


def kind_of(path):
    if path.name == "summary.json":
        certified = str(json.loads(path.read_text())["schema"]).startswith("certify")
        return CertifySummary if certified else Summary
    return OF_FILE[path.name]


def written(folder, name, values):
    (folder / name).write_text(json.dumps(values))
    return folder


@pytest.mark.skipif(not FILES, reason="the results are of a checkout, not of an installation")
def test_there_are_results_of_every_kind():
    assert {kind_of(path) for path in FILES} == {Summary, CertifySummary, *OF_FILE.values()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RESULTS)))
def test_committed_results_are_read_and_written_as_they_are(path):
    """Nothing of them is lost or added, whatever version wrote them."""
    assert read(path, kind_of(path)).as_json() == json.loads(path.read_text())


def test_results_are_attributes(tmp_path):
    summary = read_summary(written(tmp_path, "summary.json", OLDEST))
    (row,) = summary.results
    assert row.single == Estimate(0.5, (0.25, 0.75)) and row.worst_of[2].value == 0.25 and row.seeds.attack == 0
    assert (row.method, row.as_json()) == ("euler", OLDEST["results"][0])  # a key that rows no longer have


def test_keys_that_came_later_have_defaults(tmp_path):
    summary = read_summary(written(tmp_path, "summary.json", OLDEST))
    (row,) = summary.results
    assert (row.unit, row.through, row.target, row.randomness, row.undefined) == ("steps", "deployed", None, "fresh", 0)
    assert row.own_verdict is row.reached is row.attack_cost is row.surrogate is None
    assert summary.flags == summary.diagnostics == summary.paired == () and not summary.is_reduced


def test_keys_of_a_later_version_do_no_harm(tmp_path):
    later = json.loads(json.dumps(OLDEST)) | {"operator": "somebody"}
    later["results"][0]["single"]["median"] = 0.5
    later["results"][0]["energy"] = {"joule": 3}
    summary = read_summary(written(tmp_path, "summary.json", later))
    assert summary.results[0].single == Estimate(0.5, (0.25, 0.75))
    assert summary.as_json()["operator"] == "somebody" and summary.results[0].as_json()["energy"] == {"joule": 3}


@pytest.mark.parametrize("schema", [2, "1", None, "bench 2"])
def test_an_unknown_schema_is_refused(schema, tmp_path):
    with pytest.raises(RunError, match=f"summary.json is not of schema 1 but of {schema}: .* the one that wrote it"):
        read_summary(written(tmp_path, "summary.json", OLDEST | {"schema": schema}))
    with pytest.raises(RunError, match="is not of schema certify 1 but of certify 2"):
        read(written(tmp_path, "summary.json", {"schema": "certify 2"}) / "summary.json", CertifySummary)


def test_what_is_broken_is_named(tmp_path):
    broken = json.loads(json.dumps(OLDEST))
    broken["results"][0]["single"]["value"] = "half"
    with pytest.raises(RunError, match=r"summary.json is not what it should be: results.0.single.value: .* number"):
        read_summary(written(tmp_path, "summary.json", broken))
    del broken["results"]
    with pytest.raises(RunError, match="results: Field required"):
        read_summary(written(tmp_path, "summary.json", broken))
    with pytest.raises(RunError, match="holds no readable summary.json"):
        read_summary(tmp_path / "nothing")


def test_points_with_and_without_results(tmp_path):
    """Points of old have no notes."""
    estimate = {"value": 0.5, "ci95": [0.2, 0.8]}
    row = {"model": "defended", "attack": "none", "threat": "none", "single": estimate, "worst_of": {"2": estimate}}
    row |= {"majority": {"2": estimate}, "settings": None, "paired": None}
    row |= {"network_evaluations_per_image": 4.0, "seconds_per_image": 0.5}
    facts = {"folder": "a", "changes": {"purifier.steps": 2}, "error": None}
    cost = {"images": 4, "draws": 2, "network_evaluations": 2.0, "seconds": 0.25}
    sweep = {"schema": 1, "kind": "sweep", "complete": False, "mode": "grid", "keys": ["purifier.steps"]}
    sweep |= {"reference": "a", "environment": {}}
    sweep["points"] = [
        {"name": "a", **facts, "state": "finished", **cost, "results": [row]},
        {"name": "b", **facts, "state": "waiting", "results": []},
    ]
    points = read_points(written(tmp_path, "sweep.json", sweep))
    assert points.as_json() == sweep and points.draws == 2
    first, second = points.points
    assert isinstance(first, MeasuredPoint) and points.measured == [first] and second.results == ()
    (only,) = first.defended
    assert only.note is None and only.worst_of_all == only.majority_of_all == Estimate(0.5, (0.2, 0.8))
    assert read_points(tmp_path / "nothing") is None


def test_lines_and_batches_of_old(tmp_path):
    line = {"image": 3, "label": 1, "model": "defended", "attack": "none", "predictions": [1, -1], "distance": 0.0}
    (tmp_path / "images.jsonl").write_text("\n".join([json.dumps(line)] * 2) + "\n")
    assert [found.as_json() for found in read_lines(tmp_path / "images.jsonl", ImageLine)] == [line, line]
    (tmp_path / "images.jsonl").write_text("[1]\n")
    with pytest.raises(RunError, match="images.jsonl: every line must hold a mapping, got list"):
        read_lines(tmp_path / "images.jsonl", ImageLine)
    old = {"identity": "abc", "seconds": 1.0, "network_evaluations": 3, "warnings": [], "randomness": "fresh"}
    facts = BatchFacts.model_validate(old)
    assert facts.attack_cost is None and facts.as_json() == old


@pytest.mark.parametrize("name", KINDS)
def test_the_schemas_in_the_docs_are_those_of_the_models(name):
    """After a change: `python -m benchmarks.runs.schema docs/reference/schemas`."""
    folder = ROOT / "docs" / "reference" / "schemas"
    assert {path.stem for path in folder.glob("*.json")} == set(KINDS)
    assert json.loads((folder / f"{name}.json").read_text()) == json.loads(json.dumps(json_schema(name)))


def test_every_field_of_a_kind_is_explained():
    for kind in KINDS.values():
        assert kind.__doc__ and len(json.dumps(kind.model_json_schema())) > 200
