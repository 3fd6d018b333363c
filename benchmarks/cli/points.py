"""What `purify sweep` and `purify compare` share: several bench runs, and what is printed of them."""

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cli.run import Run
from benchmarks.cli.session import Session

if TYPE_CHECKING:
    from benchmarks.config.sweep import Plan
    from benchmarks.runs.schema import Points


def run_points(run: Run, plan: "Plan", reference: str, equal_evaluations: bool = False) -> tuple[Path, "Points"]:
    """The folder, and the contents of its KIND.json."""
    from benchmarks.experiments import cost_estimate
    from benchmarks.experiments.sweep import Sweep

    if run.resume:
        plan.check_same(run.begun / "config.yaml")
    experiment = Sweep(plan, run.device, reference, equal_evaluations, estimate=not run.resume)
    if experiment.seconds > cost_estimate.WORTH_SAYING:
        about = cost_estimate.duration(experiment.seconds)
        run.session.say(f"{len(plan.points)} points, about {about} in all, by a rough count")
    with run.folder(plan.dump) as folder:
        return folder, experiment.run(folder, run.session.say)


def close(session: Session, folder: Path, result: "Points") -> None:
    """The tables and the figure that both kinds have, and the last lines; the command fails where a point failed."""
    from benchmarks.reports import markdown
    from benchmarks.reports import terminal as report
    from benchmarks.reports.sweep_figures import save_pareto
    from benchmarks.runs.folder import write_text

    session.show(report.sweep_table(result))
    table = folder / f"{result.kind}.md"
    write_text(table, markdown.points_table(result) + "\n")
    session.say(f"the same as a Markdown table: {table}")

    if result.measured:
        save_pareto(result, folder / "pareto.png")
    session.say(f"results and figures: {folder}")
    failures = report.failure_lines(result)
    for line in failures:
        session.error(line)
    session.failed = bool(failures)
