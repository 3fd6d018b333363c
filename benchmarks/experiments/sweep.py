"""`purify sweep` and `purify compare`: several bench runs, point by point, on one table.

Every point is a bench run in a folder of its own below the sweep's. All points are checked before the first one starts;
a point that fails does not stop the others. Points with the same images are compared image by image with a reference
point; a difference between rows that were not attacked alike says so.
"""

import json
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks import config as configs
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError
from benchmarks.config.sweep import Plan, Point
from benchmarks.evaluation.evaluate import evaluate
from benchmarks.evaluation.statistics import paired_difference
from benchmarks.experiments import cost_estimate
from benchmarks.experiments.bench import Bench
from benchmarks.experiments.bench_folder import run_in_folder
from benchmarks.runs.environment import environment
from benchmarks.runs.folder import write_text

SCHEMA = 1

RowName = tuple[str, str]
"""A model and an attack."""


@dataclass(frozen=True)
class Checked:
    """A point that can run.

    Attributes:
        point: what it is.
        data: SHA-256 of its images.
        evaluations: network evaluations of one purification of the first image.
        seconds: of the whole run, by a rough count; 0 where it was not asked for.
    """

    point: Point
    data: str
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of a point: its summary and every row's accuracy by image, (n,) in [0, 1]; or an error; or nothing
    yet.
    """

    state: Literal["waiting", "finished", "failed"] = "waiting"
    summary: dict[str, Any] | None = None
    per_image: dict[RowName, np.ndarray] | None = None
    error: str | None = None


class Sweep:
    """Checked points, ready to run.

    Args:
        plan: the points.
        device: where the models run.
        reference: the number, from 0, or the name of the point that the others are compared with.
        equal_evaluations: whether all points must need as many network evaluations for one purification of an image.
        estimate: whether to count roughly how long the run takes.

    Raises:
        ConfigError: points that cannot work, each with its name and the reason; an unknown reference; unequal network
            evaluations.
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        reference: str = "0",
        equal_evaluations: bool = False,
        estimate: bool = False,
    ):
        self.plan = plan
        self.device = device
        self.reference = plan.position(reference)
        self.checked = self._check(estimate)
        if equal_evaluations:
            _check_equal(self.checked)

    @property
    def seconds(self) -> float:
        """Of all points, by a rough count."""
        return sum(checked.seconds for checked in self.checked)

    def _check(self, estimate: bool) -> tuple[Checked, ...]:
        """Builds every point once, and lets it go: their models together may not fit into memory."""
        checked, problems = [], dict[str, list[str]]()
        for point in self.plan.points:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the run says them again
                    bench = Bench(point.settings, self.device)
                    seconds = cost_estimate.rough_seconds(bench) if estimate else 0.0
                    checked.append(Checked(point, bench.setup.fingerprint_data(), _evaluations(bench), seconds))
            except (ValueError, OSError) as error:
                problems.setdefault(str(error).replace("\n", "; "), []).append(point.name)
        if problems:
            count = sum(map(len, problems.values()))
            lines = [f"  {', '.join(names)}: {problem}" for problem, names in problems.items()]
            raise ConfigError(
                "\n".join([f"{count} of {len(self.plan.points)} points cannot be run, so none was:", *lines])
            )
        return tuple(checked)

    def run(self, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
        """Runs what `out` does not hold yet, and writes KIND.json after every point.

        A point that fails leaves error.txt in its folder, and is tried again when the sweep is resumed.

        Args:
            out: exists; its own folder of another sweep must have been refused before, see `Plan.check_same`.
            say: gets a line per row.

        Returns:
            The contents of KIND.json.
        """
        outcomes = [Outcome()] * len(self.checked)
        for position, checked in enumerate(self.checked):
            outcomes[position] = self._run_point(
                checked, out / checked.point.name, lambda text, name=checked.point.name: say(f"{name}: {text}")
            )
            result = self.result(outcomes)
            write_text(out / f"{self.plan.kind}.json", json.dumps(result, indent=2) + "\n")
        return result

    def _run_point(self, checked: Checked, folder: Path, say: Callable[[str], None]) -> Outcome:
        settings = checked.point.settings
        folder.mkdir(exist_ok=True)
        begun = (folder / "config.yaml").is_file()
        try:
            if begun:
                configs.check_same(settings, folder / "config.yaml")
            summary, evaluations = run_in_folder(Bench(settings, self.device), folder, say, begun)
        except Exception as error:  # whatever it is, out of memory for one, the other points do not depend on it
            write_text(folder / "error.txt", traceback.format_exc())
            say(f"failed, {type(error).__name__}: {error}")
            return Outcome("failed", error=f"{type(error).__name__}: {error}")
        (folder / "error.txt").unlink(missing_ok=True)
        return Outcome(
            "finished",
            summary,
            {(row.model_name, row.attack_name): measured.per_image.numpy() for row, measured in evaluations},
        )

    def result(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """The contents of KIND.json."""
        points = [
            self._point(checked, outcome, outcomes[self.reference])
            for checked, outcome in zip(self.checked, outcomes, strict=True)
        ]
        _mark_pareto(points)
        return {
            "schema": SCHEMA,
            "kind": self.plan.kind,
            "complete": all(outcome.state == "finished" for outcome in outcomes),
            "mode": self.plan.mode,
            "keys": list(self.plan.axes),
            "reference": self.checked[self.reference].point.name,
            "environment": environment(self.device),
            "points": points,
        }

    def _point(self, checked: Checked, outcome: Outcome, reference: Outcome) -> dict[str, Any]:
        point, summary = checked.point, outcome.summary
        settings = point.settings.model_dump(mode="json")
        facts: dict[str, Any] = {
            "name": point.name,
            "folder": point.name,
            "changes": {key: _as_checked(settings, key, value) for key, value in point.changes.items()},
            "state": outcome.state,
            "error": outcome.error,
        }
        if summary is None:
            return facts | {"results": []}
        rows = [_row(result, summary["images"], point.settings) for result in summary["results"]]
        if (
            checked.data == self.checked[self.reference].data
            and outcome is not reference
            and reference.summary is not None
        ):
            _compare(rows, outcome, reference, self.checked[self.reference].point.settings)
        clean = next(row for row in rows if (row["model"], row["attack"]) == ("defended", "none"))
        return facts | {
            "images": summary["images"],
            "draws": summary["draws"],
            "network_evaluations": clean["network_evaluations_per_image"] / summary["draws"],
            "seconds": clean["seconds_per_image"] / summary["draws"],
            "results": rows,
        }


def _evaluations(bench: Bench) -> int:
    one = evaluate(
        bench.models["defended"],
        bench.x[:1],
        bench.y[:1],
        draws=1,
        seed=bench.settings.seed,
        image_ids=bench.image_ids[:1],
    )
    return one.network_evaluations


def _check_equal(checked: Sequence[Checked]) -> None:
    if len({each.evaluations for each in checked}) > 1:
        lines = [f"  {each.point.name}: {each.evaluations}" for each in checked]
        head = (
            "the schemes do not need the same number of network evaluations to purify an image; change `steps`, or"
            " compare them so by --unequal:"
        )
        raise ConfigError("\n".join([head, *lines]))


def _as_checked(settings: dict[str, Any], key: str, value: Any) -> Any:
    """The number that the checked configuration makes of a value, "8/255" for instance; else the value."""
    node: Any = settings
    for part in key.split("."):
        try:
            node = node[int(part)] if isinstance(node, list) else node[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return value
    return node if isinstance(node, int | float) else value


def _row(result: dict[str, Any], images: int, settings: BenchConfig) -> dict[str, Any]:
    """A row of a point: from its summary, with cost by image and the attack's settings; not yet compared."""
    return {
        **{key: result[key] for key in ("model", "attack", "threat", "single", "worst_of", "majority")},
        "settings": _attack_settings(settings, result["attack"]),
        "network_evaluations_per_image": result["network_evaluations"] / images,
        "seconds_per_image": result["seconds"] / images,
        "paired": None,
        "note": None,
    }


def _attack_settings(settings: BenchConfig, name: str) -> dict[str, Any] | None:
    """What an attack is, beside its name and the models that it is for; None of no attack."""
    named = (attack for attack in settings.attacks if attack.label == name)
    return next((attack.model_dump(mode="json", exclude={"name", "models"}) for attack in named), None)


def _compare(rows: list[dict[str, Any]], own: Outcome, reference: Outcome, reference_settings: BenchConfig) -> None:
    """Adds the differences from the reference's rows of the same names, with a note where those are of another attack
    or threat.
    """
    threats = {(result["model"], result["attack"]): result["threat"] for result in reference.summary["results"]}  # type: ignore[index]
    for row in rows:
        name = row["model"], row["attack"]
        if name not in threats:
            continue
        row["paired"] = paired_difference(own.per_image[name], reference.per_image[name]).as_dict()  # type: ignore[index]
        differing = {
            "another threat": row["threat"] != threats[name],
            "another attack": (
                _without_threat(row["settings"]) != _without_threat(_attack_settings(reference_settings, row["attack"]))
            ),
        }
        row["note"] = ", ".join(note for note, differs in differing.items() if differs) or None


def _without_threat(settings: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (settings or {}).items() if key != "threat"}


def attacked_alike(row: dict[str, Any]) -> tuple[str, str, str]:
    """What rows share whose accuracies mean the same: the attack's name, its threat and its settings."""
    return row["attack"], row["threat"], json.dumps(row["settings"], sort_keys=True)


def _mark_pareto(points: list[dict[str, Any]]) -> None:
    """Says of every row of the defence whether no other point is more accurate under the same attack at as few network
    evaluations.
    """
    rows: dict[tuple[str, str, str], list[tuple[float, float, dict[str, Any]]]] = {}
    for point in points:
        for row in point["results"]:
            if row["model"] == "defended":
                rows.setdefault(attacked_alike(row), []).append(
                    (point["network_evaluations"], row["single"]["value"], row)
                )
    for entries in rows.values():
        front = pareto_front([cost for cost, _, _ in entries], [value for _, value, _ in entries])
        for position, (_, _, row) in enumerate(entries):
            row["pareto"] = position in front


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Positions, by ascending cost, where nothing of at most the cost has at least the value with one of the two
    better.
    """
    pairs = list(zip(costs, values, strict=True))
    front = [
        i
        for i, (c, v) in enumerate(pairs)
        if not any(cost <= c and value >= v and (cost, value) != (c, v) for cost, value in pairs)
    ]
    return sorted(front, key=lambda i: pairs[i])
