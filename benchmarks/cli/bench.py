"""`purify bench`."""

import time
from typing import Annotated

import typer

from benchmarks.cli.machine_readable import in_folder
from benchmarks.cli.options import DEFAULT_BENCH, Device, Out, Overrides, Resume, complete_config, flag
from benchmarks.cli.run import Run
from benchmarks.cli.session import Result, Session, command


@command
def bench(
    session: Session,
    config: Annotated[
        str,
        typer.Argument(help="A YAML file, or the name of a packaged configuration.", autocompletion=complete_config),
    ] = DEFAULT_BENCH,
    out: Out = None,
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the configuration's seed.")] = None,
    device: Device = None,
    resume: Resume = False,
    estimate: Annotated[
        bool, flag("--estimate", help="Only say what the run will cost: evaluations, time, memory.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", help="Fit the run into a time (45s, 30m, 2h): fewer images first, then shorter attacks."
        ),
    ] = None,
    diagnose: Annotated[
        bool, flag("--diagnose", help="Measure more rows on few images, to find signs of a broken evaluation.")
    ] = False,
) -> Result:
    """Measure a classifier with and without purification, clean and attacked.

    Writes config.yaml, summary.json, images.jsonl (every draw of every image), the adversarial images, and figures.
    Signs of a broken evaluation are printed after the table.
    """
    from benchmarks.config.bench import BenchConfig
    from benchmarks.experiments import cost_estimate
    from benchmarks.experiments.bench import Bench
    from benchmarks.experiments.bench_folder import run_in_folder
    from benchmarks.reports import terminal as report

    started = time.monotonic()
    run = Run(session, "bench", out, device, resume)
    limit = None if budget is None else cost_estimate.parse_duration(budget)
    _check_options(run, estimate, limit, diagnose)
    settings = run.load(BenchConfig, config, [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])])
    experiment = Bench(settings, run.device)
    if estimate or limit is not None:
        cost, record = cost_estimate.estimate(experiment, session.say), None
        session.show(report.estimate_table(cost, settings.draws))
        if limit is not None:
            settings, record = cost_estimate.fit(settings, cost, limit, 0.0 if estimate else time.monotonic() - started)
            session.say("\n".join(cost_estimate.reduction_lines(record)))
            experiment = experiment if estimate else Bench(settings, experiment.device, record)
        if estimate:
            return {"estimate": cost, "seconds": cost.seconds, "budget": record}
    elif not resume:
        seconds = cost_estimate.rough_seconds(experiment)
        if seconds > cost_estimate.WORTH_SAYING:
            session.say(
                f"about {cost_estimate.duration(seconds)} in all, by a rough count; `--estimate` measures it,"
                " `--budget` limits it"
            )
    folder = run.make_folder()
    with run.said_how_to_go_on(folder):
        summary, _ = run_in_folder(experiment, folder, session.say, resume, diagnose)
    session.show(report.table(summary))
    paired = report.paired_table(summary)
    if paired is not None:
        session.show(paired)
    for line in [*report.budget_lines(summary), *report.flag_lines(summary)]:
        session.warning(line)
    for line in report.diagnosis_lines(summary) if diagnose else []:
        session.print(line)
    session.print(f"results and figures: {folder}")
    return in_folder(folder, summary)


def _check_options(run: Run, estimate: bool, limit: float | None, diagnose: bool) -> None:
    if limit is not None and run.resume:
        again = f"`purify bench {run.begun / 'config.yaml'} --out {run.out} --resume`"
        raise ValueError(f"--budget with --resume: a run's reduced configuration is in its folder; go on by {again}")
    if limit is not None and diagnose:
        raise ValueError("--budget does not cover --diagnose: run one, then diagnose its folder by --resume --diagnose")
    if estimate and (run.resume or diagnose):
        raise ValueError("--estimate is of a whole run: leave out --resume and --diagnose")
