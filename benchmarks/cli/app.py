"""The command line: `purify bench`, `audit`, `certify`, `clean`, `compare`, `models`, `report`, `rivals`, `speed`,
`sweep`, `train`.
"""

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli.models import models
from benchmarks.cli.options import Device, Out, Overrides, Resume, required_out, said_how_to_go_on, say
from benchmarks.cli.sweeps import compare, sweep

# Imports stand inside the commands: each loads what it needs, and bad arguments are answered at once.

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)
app.add_typer(models, name="models")

DEFAULT_BENCH = "fashion-mnist/bench"
DEFAULT_CERTIFY = "fashion-mnist/certify"


@app.callback()
def about() -> None:
    """Put a diffusion model in front of an image classifier and measure honestly how robust the pair is."""


@app.command()
def bench(
    config: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a packaged configuration.")
    ] = DEFAULT_BENCH,
    out: Out = None,
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the configuration's seed.")] = None,
    device: Device = None,
    resume: Resume = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say what the run will cost: evaluations, time, memory.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", help="Fit the run into a time (45s, 30m, 2h): fewer images first, then shorter attacks."
        ),
    ] = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Measure more rows on few images, to find signs of a broken evaluation.")
    ] = False,
) -> None:
    """Measure a classifier with and without purification, clean and attacked.

    Writes config.yaml, summary.json, images.jsonl (every draw of every image), the adversarial images, and figures.
    Signs of a broken evaluation are printed after the table.
    """
    from rich.console import Console

    from benchmarks import config as configs
    from benchmarks import runs
    from benchmarks.config.bench import BenchConfig
    from benchmarks.experiments import cost_estimate
    from benchmarks.experiments.bench import Bench
    from benchmarks.experiments.bench_folder import run_in_folder
    from benchmarks.reports import terminal as report

    console, started = Console(), time.monotonic()
    limit = None if budget is None else cost_estimate.parse_duration(budget)
    _check_bench_options(out, resume, estimate, limit, diagnose)
    settings = configs.load(BenchConfig, config, [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])])
    if resume:
        configs.check_same(settings, required_out(out) / "config.yaml")
    experiment = Bench(settings, runs.pick_device(device))
    if estimate or limit is not None:
        cost = cost_estimate.estimate(experiment, say)
        console.print(report.estimate_table(cost, settings.draws))
        if limit is not None:
            settings, record = cost_estimate.fit(settings, cost, limit, 0.0 if estimate else time.monotonic() - started)
            say("\n".join(cost_estimate.reduction_lines(record)))
            experiment = experiment if estimate else Bench(settings, experiment.device, record)
        if estimate:
            return
    elif not resume:
        seconds = cost_estimate.rough_seconds(experiment)
        if seconds > cost_estimate.WORTH_SAYING:
            say(
                f"about {cost_estimate.duration(seconds)} in all, by a rough count; `--estimate` measures it,"
                " `--budget` limits it"
            )
    folder = required_out(out) if resume else runs.make_folder(out, "bench")
    with said_how_to_go_on(folder):
        summary, _ = run_in_folder(experiment, folder, say, resume, diagnose)
    console.print(report.table(summary))
    paired = report.paired_table(summary)
    if paired is not None:
        console.print(paired)
    for line in [*report.budget_lines(summary), *report.flag_lines(summary)]:
        console.print(line, soft_wrap=True, highlight=False)
    for line in report.diagnosis_lines(summary) if diagnose else []:
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"results and figures: {folder}", soft_wrap=True)


def _check_bench_options(out: Path | None, resume: bool, estimate: bool, limit: float | None, diagnose: bool) -> None:
    if limit is not None and resume:
        again = f"`purify bench {required_out(out) / 'config.yaml'} --out {out} --resume`"
        raise ValueError(f"--budget with --resume: a run's reduced configuration is in its folder; go on by {again}")
    if limit is not None and diagnose:
        raise ValueError("--budget does not cover --diagnose: run one, then diagnose its folder by --resume --diagnose")
    if estimate and (resume or diagnose):
        raise ValueError("--estimate is of a whole run: leave out --resume and --diagnose")


app.command()(sweep)
app.command()(compare)


@app.command()
def rivals(
    config: Annotated[
        str, typer.Argument(help="A configuration as for bench: its models, data and first threat.")
    ] = DEFAULT_BENCH,
    out: Out = None,
    overrides: Overrides = None,
    images: Annotated[int, typer.Option(min=1, help="Images.")] = 16,
    iterations: Annotated[int, typer.Option(min=1, help="Gradient steps of every attack.")] = 10,
    eot: Annotated[int, typer.Option(min=1, help="Draws per gradient, on the defence.")] = 4,
    queries: Annotated[int, typer.Option(min=1, help="Queries of the ensembles' Square attack.")] = 200,
    device: Device = None,
) -> None:
    """Compare our attacks with other packages' on the same models, images, budget and draws.

    Against pyautoattack always, against torchattacks and foolbox where they are installed. Writes rivals.json.
    """
    from rich.console import Console

    from benchmarks import config as configs
    from benchmarks import runs
    from benchmarks.config.bench import BenchConfig
    from benchmarks.experiments.rivals import Rivals
    from benchmarks.reports import terminal as report

    settings = configs.load(BenchConfig, config, [*(overrides or []), f"data.images={images}"])
    contest = Rivals(settings, runs.pick_device(device), iterations, eot, queries)
    folder = runs.make_folder(out, "rivals")
    with runs.locked(folder):
        result = contest.run(folder, say)
    console = Console()
    for table in report.rivals_tables(result):
        console.print(table)
    console.print(f"results: {folder / 'rivals.json'}", soft_wrap=True)


@app.command()
def audit(
    config: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a packaged configuration, as for bench.")
    ] = DEFAULT_BENCH,
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
) -> None:
    """Measure every gradient mode of a defence against a float64 reference on the same noise: error, time, memory.

    Writes audit.json and audit.png. The exit code is 1 where the `exact` gradient is not what it claims to be.
    """
    from rich.console import Console

    from benchmarks import config as configs
    from benchmarks import runs
    from benchmarks.config.bench import BenchConfig
    from benchmarks.experiments.audit import Audit
    from benchmarks.reports import terminal as report
    from benchmarks.reports.figures import save_audit_chart

    settings = configs.load(BenchConfig, config, overrides)
    experiment = Audit(settings, runs.pick_device(device))
    folder = runs.make_folder(out, "audit")
    with runs.locked(folder):
        result = experiment.run(folder, say)
    if result.sweep:
        save_audit_chart(result.sweep, folder / "audit.png")
    console = Console()
    for table in report.audit_tables(result):
        console.print(table)
    for verdict in result.verdicts:
        mark = {True: "ok  ", False: "FAIL", None: "    "}[verdict.passed]
        console.print(
            f"{mark} {verdict.mode} ({verdict.steps} steps, {verdict.precision}): {verdict.text}",
            soft_wrap=True,
            highlight=False,
        )
    console.print(f"results and figure: {folder}", soft_wrap=True)
    if any(verdict.passed is False for verdict in result.verdicts):
        raise typer.Exit(1)


@app.command()
def certify(
    config: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a packaged configuration.")
    ] = DEFAULT_CERTIFY,
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
    resume: Resume = False,
) -> None:
    """Certify L2 radii of the classifier smoothed by noise and one denoising step: randomised smoothing, with
    Clopper-Pearson bounds.

    Writes config.yaml, summary.json, images.jsonl (class, radius and counts of every image), and certified.png. A
    certificate is about the smoothed classifier, in L2, and holds for each image with probability 1 - alpha; it says
    nothing of a single purified draw.
    """
    from rich.console import Console

    from benchmarks import config as configs
    from benchmarks import runs
    from benchmarks.config.certify import CertifyConfig
    from benchmarks.experiments.certify import Certify
    from benchmarks.reports.certify_figure import save_certified_curves
    from benchmarks.reports.terminal import certify_table

    settings = configs.load(CertifyConfig, config, overrides)
    if resume:
        configs.check_same(settings, required_out(out) / "config.yaml")
    experiment = Certify(settings, runs.pick_device(device))
    folder = required_out(out) if resume else runs.make_folder(out, "certify")
    with runs.locked(folder):
        if not resume:
            configs.dump(settings, folder / "config.yaml")
        with said_how_to_go_on(folder):
            summary, certifications = experiment.run(folder, say)
    save_certified_curves(certifications, folder / "certified.png")
    console = Console()
    console.print(certify_table(summary))
    console.print(summary.claim, highlight=False)
    console.print(f"results and figure: {folder}", soft_wrap=True)


@app.command()
def clean(
    images: Annotated[list[Path], typer.Argument(help="Image files (PNG, JPEG, ...).")],
    out: Out = None,
    score: Annotated[str, typer.Option(help="Packaged score model, or a .safetensors file.")] = "fashion-mnist",
    t_star: Annotated[float, typer.Option(help="Time to diffuse to, in (0, 1].")] = 0.1,
    steps: Annotated[int, typer.Option(help="Network evaluations on the way back.")] = 50,
    resize: Annotated[
        bool, typer.Option("--resize", help="Resize to the size that the network was trained on.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Device = None,
) -> None:
    """Purify image files; results are PNG files of the same name in --out."""
    from benchmarks import runs
    from benchmarks.experiments.clean import clean as clean_files
    from purify import DiffPure, load_score_model

    where = runs.pick_device(device)
    purifier = DiffPure(load_score_model(score), t_star, steps).to(where)
    clean_files(purifier, images, lambda: runs.make_folder(out, "clean"), resize, seed, where, say)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished `purify bench` runs, or of sweeps and comparisons.")
    ],
    curve: Annotated[
        str | None, typer.Option(help="Draw accuracy against this setting, t_star or steps, into --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="PNG file of the curve.")] = None,
) -> None:
    """Print the results of several runs as one Markdown table, and draw a curve over them; print the tables of sweeps
    and comparisons again.
    """
    from rich.console import Console

    from benchmarks.reports import markdown
    from benchmarks.reports import terminal as reports
    from benchmarks.runs.folder import RunError

    swept = {folder: result for folder in runs if (result := reports.read_points(folder)) is not None}
    summaries = [reports.read_summary(folder) for folder in runs if folder not in swept]
    for result in swept.values():
        Console().print(reports.sweep_table(result))
        for line in reports.failure_lines(result):
            say(line)
    if summaries:
        print(markdown.runs_table(summaries))
    if curve is not None:
        if curve not in ("t_star", "steps"):
            raise RunError(f"--curve {curve!r} is not one of t_star, steps")
        if out is None:
            raise RunError("--curve needs --out FILE.png")
        if not summaries:
            raise RunError("--curve draws over bench runs: give the folders of a sweep's points, or see its sweep.png")
        from benchmarks.reports.figures import save_curve

        save_curve(curve, reports.curves(summaries, curve), out)


@app.command()
def speed(
    score: Annotated[str, typer.Option(help="Packaged score model, or a .safetensors file.")] = "fashion-mnist",
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations of a purification.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; medians are reported.")] = 7,
    device: Device = None,
) -> None:
    """Time purification and its gradients against the bare network evaluations they contain, and attacks' averaged
    gradients against theirs.
    """
    from rich.console import Console
    from rich.table import Table

    from benchmarks import runs
    from benchmarks.experiments.speed import measure
    from purify import load_score_model

    where = runs.pick_device(device)
    result = measure(load_score_model(score), batch, steps, rounds, where)
    table = Table(
        "part", "seconds", "ratio", title=f"{batch} images, {steps} evaluations, {runs.environment(where)['device']}"
    )
    for group in (result, result.eot):
        for name, seconds in group.seconds.items():
            table.add_row(
                name, f"{seconds:.3f}", f"{group.ratio[name]:.2f}", end_section=name == list(group.seconds)[-1]
            )
    Console().print(table)


@app.command()
def train(
    config: Annotated[
        str,
        typer.Argument(help="A YAML file, or the name of a packaged configuration, e.g. fashion-mnist/train_score."),
    ],
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
    resume: Resume = False,
) -> None:
    """Train a score network or a classifier.

    Ctrl-C or SIGTERM leaves a checkpoint; --resume goes on from it. At the end: the averaged weights as safetensors,
    and pictures.
    """
    import json

    from benchmarks import config as configs
    from benchmarks import runs
    from benchmarks.experiments.train import TrainConfig, Training

    settings = configs.load(TrainConfig, config, overrides)
    if resume:
        configs.check_same(settings, required_out(out) / "config.yaml")
    training = Training(settings, runs.pick_device(device))
    folder = required_out(out) if resume else runs.make_folder(out, "train")
    with runs.locked(folder):
        if not resume:
            configs.dump(settings, folder / "config.yaml")
        print(json.dumps(training.run(folder, resume, say), indent=2))
    say(f"weights and pictures: {folder}")


def main() -> None:
    """Runs the command line: exit code 2 and one message for bad input, 130 after Ctrl-C."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("PURIFY_DEBUG"):
            raise
        say(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
