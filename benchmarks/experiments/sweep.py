"""`purify sweep` and `purify compare`: several bench runs, point by point, on one table.

Every point is a bench run in a folder of its own below the sweep's. All points are checked before the first one starts;
a point that fails does not stop the others. Points with the same images are compared image by image with a reference
point; a difference between rows that were not attacked alike says so.
"""

import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import config as configs
from benchmarks.config.sections import ConfigError
from benchmarks.config.sweep import Plan, Point
from benchmarks.evaluation.evaluate import evaluate
from benchmarks.experiments import cost_estimate
from benchmarks.experiments.bench import Bench
from benchmarks.experiments.bench_folder import run_in_folder
from benchmarks.experiments.sweep_points import Finished, Outcome, Reference, RowName, point_of, with_pareto
from benchmarks.runs.environment import environment
from benchmarks.runs.folder import write_text
from benchmarks.runs.schema import Points, write


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

    def run(self, out: Path, say: Callable[[str], None]) -> Points:
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
            outcomes[position] = self._run_point(checked, out / checked.point.name, say)
            result = self.result(outcomes)
            write(out / f"{self.plan.kind}.json", result)
        return result

    def _run_point(self, checked: Checked, folder: Path, say: Callable[[str], None]) -> Outcome:
        name, settings = checked.point.name, checked.point.settings
        folder.mkdir(exist_ok=True)
        begun = (folder / "config.yaml").is_file()
        try:
            if begun:
                configs.check_same(settings, folder / "config.yaml")
            bench = Bench(settings, self.device)
            summary, evaluations = run_in_folder(bench, folder, lambda text: say(f"{name}: {text}"), begun)
        except Exception as error:  # whatever it is, out of memory for one, the other points do not depend on it
            write_text(folder / "error.txt", traceback.format_exc())
            say(f"{name}: failed, {type(error).__name__}: {error}")
            return Outcome("failed", error=f"{type(error).__name__}: {error}")
        (folder / "error.txt").unlink(missing_ok=True)
        per_image: dict[RowName, np.ndarray] = {
            (row.model_name, row.attack_name): measured.per_image.numpy() for row, measured in evaluations
        }
        return Outcome("finished", Finished(summary, per_image))

    def result(self, outcomes: Sequence[Outcome]) -> Points:
        """The contents of KIND.json."""
        return Points(
            schema_version=1,
            kind=self.plan.kind,
            complete=all(outcome.state == "finished" for outcome in outcomes),
            mode=self.plan.mode,
            keys=tuple(self.plan.axes),
            reference=self.checked[self.reference].point.name,
            environment=environment(self.device),
            points=with_pareto(
                [
                    point_of(checked.point, outcome, self._reference_of(checked, outcomes))
                    for checked, outcome in zip(self.checked, outcomes, strict=True)
                ]
            ),
        )

    def _reference_of(self, checked: Checked, outcomes: Sequence[Outcome]) -> Reference | None:
        """What a point is compared with: nothing where it is the reference itself, or has other images."""
        reference, finished = self.checked[self.reference], outcomes[self.reference].finished
        if finished is None or checked is reference or checked.data != reference.data:
            return None
        return Reference(finished, reference.point.settings)


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
