"""The command line: `purify bench`, `audit`, `certify`, `clean`, `compare`, `models`, `report`, `rivals`, `speed`, `sweep`, `train`."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from benchmarks.sweep_config import Plan

# Imports stand inside the commands: each loads what it needs, and bad arguments are answered at once.

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")

models = typer.Typer(no_args_is_help=True, help="Weights of the literature: list, fetch, verify, convert, look into.")
app.add_typer(models, name="models")

DEFAULT_BENCH = "fashion-mnist/bench"
DEFAULT_CERTIFY = "fashion-mnist/certify"

Out = Annotated[Path | None, typer.Option("--out", help="Folder for the results, new or empty. Default: runs/KIND-DATE-TIME.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the configuration, e.g. purifier.t_star=0.1; repeatable.")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N. Default: a GPU where there is one.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]


@app.callback()
def about() -> None:
    """Put a diffusion model in front of an image classifier and measure honestly how robust the pair is."""


@app.command()
def bench(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a packaged configuration.")] = DEFAULT_BENCH,
    out: Out = None,
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the configuration's seed.")] = None,
    device: Device = None,
    resume: Resume = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what the run will cost: evaluations, time, memory.")] = False,
    budget: Annotated[str | None, typer.Option("--budget", help="Fit the run into a time (45s, 30m, 2h): fewer images first, then shorter attacks.")] = None,
    diagnose: Annotated[bool, typer.Option("--diagnose", help="Measure more rows on few images, to find signs of a broken evaluation.")] = False,
) -> None:
    """Measure a classifier with and without purification, clean and attacked.

    Writes config.yaml, summary.json, images.jsonl (every draw of every image), the adversarial images, and figures. Signs of a broken evaluation are
    printed after the table.
    """
    from rich.console import Console

    from benchmarks import config as configs
    from benchmarks import cost_estimate, report, runs
    from benchmarks.bench import Bench
    from benchmarks.bench_config import BenchConfig
    from benchmarks.bench_folder import run_in_folder

    console, started = Console(), time.monotonic()
    limit = None if budget is None else cost_estimate.parse_duration(budget)
    _check_bench_options(out, resume, estimate, limit, diagnose)
    settings = configs.load(BenchConfig, config, [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])])
    if resume:
        configs.check_same(settings, _required_out(out) / "config.yaml")
    experiment = Bench(settings, runs.pick_device(device))
    if estimate or limit is not None:
        cost = cost_estimate.estimate(experiment, _say)
        console.print(report.estimate_table(cost, settings.draws))
        if limit is not None:
            settings, record = cost_estimate.fit(settings, cost, limit, 0.0 if estimate else time.monotonic() - started)
            _say("\n".join(cost_estimate.reduction_lines(record)))
            experiment = experiment if estimate else Bench(settings, experiment.device, record)
        if estimate:
            return
    elif not resume:
        seconds = cost_estimate.rough_seconds(experiment)
        if seconds > cost_estimate.WORTH_SAYING:
            _say(f"about {cost_estimate.duration(seconds)} in all, by a rough count; `--estimate` measures it, `--budget` limits it")
    folder = _required_out(out) if resume else runs.make_folder(out, "bench")
    with _said_how_to_go_on(folder):
        summary, _ = run_in_folder(experiment, folder, _say, resume, diagnose)
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
        again = f"`purify bench {_required_out(out) / 'config.yaml'} --out {out} --resume`"
        raise ValueError(f"--budget with --resume: a run's reduced configuration is in its folder; go on by {again}")
    if limit is not None and diagnose:
        raise ValueError("--budget does not cover --diagnose: run one, then diagnose its folder by --resume --diagnose")
    if estimate and (resume or diagnose):
        raise ValueError("--estimate is of a whole run: leave out --resume and --diagnose")


@app.command()
def sweep(
    config: Annotated[str, typer.Argument(help="A configuration as for bench, by itself or with a section `sweep:`, e.g. fashion-mnist/sweep.")],
    over: Annotated[
        list[str] | None,
        typer.Option("--over", metavar="KEY=VALUE,...", help="Values of one key of the configuration, e.g. purifier.steps=5,10; repeatable: all combinations."),
    ] = None,
    zipped: Annotated[bool, typer.Option("--zip", help="Walk the lists of values together instead of combining them.")] = False,
    reference: Annotated[str, typer.Option(help="Number, from 0, or name of the point that the others are compared with.")] = "0",
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
    resume: Resume = False,
) -> None:
    """Measure a defence at several values of its configuration: clean and robust accuracy against cost.

    Every point is a bench run in a folder of its own. Writes sweep.json, sweep.png (accuracy against each value) and pareto.png (accuracy against network
    evaluations), and compares all points with a reference, image by image. The exit code is 1 where a point failed.

    Every point measures the undefended classifier too. Attacks on it are the same whatever the purifier: leave them out by `models: [defended]` at each attack.
    """
    from rich.console import Console

    from benchmarks import report
    from benchmarks.sweep_config import load_sweep
    from benchmarks.sweep_figures import save_sweep_curves

    folder, result = _run_points(load_sweep(config, overrides, over, zipped), out, device, resume, reference)
    if any(point["results"] for point in result["points"]):
        save_sweep_curves(result, folder / "sweep.png")
    Console().print(report.sweep_table(result))
    _close_points(folder, result)


@app.command()
def compare(
    config: Annotated[str, typer.Argument(help="A configuration as for bench, with a section `schemes:`.")] = "fashion-mnist/compare",
    unequal: Annotated[
        bool, typer.Option("--unequal", help="Allow schemes that need different numbers of network evaluations, as `unequal: true` in the configuration does.")
    ] = False,
    reference: Annotated[str, typer.Option(help="Number, from 0, or name of the scheme that the others are compared with.")] = "0",
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
    resume: Resume = False,
) -> None:
    """Compare several purifiers at equal network evaluations, on the same images, under the same attacks.

    Every scheme is a bench run in a folder of its own. Writes compare.md (a table), compare.json and pareto.png. The exit code is 1 where a scheme failed.

    Every run measures the undefended classifier too. Attacks on it are the same whatever the scheme: leave them out by `models: [defended]` at each attack.
    """
    from rich.console import Console

    from benchmarks import report
    from benchmarks.runs import write_text
    from benchmarks.sweep_config import load_compare

    plan = load_compare(config, overrides)
    folder, result = _run_points(plan, out, device, resume, reference, equal_evaluations=not (unequal or plan.unequal))
    write_text(folder / "compare.md", report.compare_markdown(result) + "\n")
    Console().print(report.sweep_table(result))
    _say(f"the same as a Markdown table: {folder / 'compare.md'}")
    _close_points(folder, result)


def _run_points(
    plan: "Plan", out: Path | None, device: str | None, resume: bool, reference: str = "0", equal_evaluations: bool = False
) -> tuple[Path, dict[str, Any]]:
    """The folder, and the contents of its KIND.json."""
    from benchmarks import cost_estimate, runs
    from benchmarks.sweep import Sweep

    if resume:
        plan.check_same(_required_out(out) / "config.yaml")
    experiment = Sweep(plan, runs.pick_device(device), reference, equal_evaluations, estimate=not resume)
    if experiment.seconds > cost_estimate.WORTH_SAYING:
        _say(f"{len(plan.points)} points, about {cost_estimate.duration(experiment.seconds)} in all, by a rough count")
    folder = _required_out(out) if resume else runs.make_folder(out, plan.kind)
    with runs.locked(folder), _said_how_to_go_on(folder):
        if not resume:
            plan.dump(folder / "config.yaml")
        return folder, experiment.run(folder, _say)


def _close_points(folder: Path, result: dict[str, Any]) -> None:
    """The figure that every kind has, and the last lines; leaves by exit code 1 where a point failed."""
    from benchmarks import report
    from benchmarks.sweep_figures import save_pareto

    if any(point["results"] for point in result["points"]):
        save_pareto(result, folder / "pareto.png")
    _say(f"results and figures: {folder}")
    failures = report.failure_lines(result)
    for line in failures:
        _say(line)
    if failures:
        raise typer.Exit(1)


@app.command()
def rivals(
    config: Annotated[str, typer.Argument(help="A configuration as for bench: its models, data and first threat.")] = DEFAULT_BENCH,
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
    from benchmarks import report, runs
    from benchmarks.bench_config import BenchConfig
    from benchmarks.rivals import Rivals

    settings = configs.load(BenchConfig, config, [*(overrides or []), f"data.images={images}"])
    contest = Rivals(settings, runs.pick_device(device), iterations, eot, queries)
    folder = runs.make_folder(out, "rivals")
    with runs.locked(folder):
        result = contest.run(folder, _say)
    console = Console()
    for table in report.rivals_tables(result):
        console.print(table)
    console.print(f"results: {folder / 'rivals.json'}", soft_wrap=True)


@app.command()
def audit(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a packaged configuration, as for bench.")] = DEFAULT_BENCH,
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
) -> None:
    """Measure every gradient mode of a defence against a float64 reference on the same noise: error, time, memory.

    Writes audit.json and audit.png. The exit code is 1 where the `exact` gradient is not what it claims to be.
    """
    from rich.console import Console

    from benchmarks import config as configs
    from benchmarks import report, runs
    from benchmarks.audit import Audit
    from benchmarks.bench_config import BenchConfig
    from benchmarks.figures import save_audit_chart

    settings = configs.load(BenchConfig, config, overrides)
    experiment = Audit(settings, runs.pick_device(device))
    folder = runs.make_folder(out, "audit")
    with runs.locked(folder):
        result = experiment.run(folder, _say)
    if result["sweep"]:
        save_audit_chart(result["sweep"], folder / "audit.png")
    console = Console()
    for table in report.audit_tables(result):
        console.print(table)
    for verdict in result["verdicts"]:
        mark = {True: "ok  ", False: "FAIL", None: "    "}[verdict["passed"]]
        console.print(f"{mark} {verdict['mode']} ({verdict['steps']} steps, {verdict['precision']}): {verdict['text']}", soft_wrap=True, highlight=False)
    console.print(f"results and figure: {folder}", soft_wrap=True)
    if any(verdict["passed"] is False for verdict in result["verdicts"]):
        raise typer.Exit(1)


@app.command()
def certify(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a packaged configuration.")] = DEFAULT_CERTIFY,
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
    resume: Resume = False,
) -> None:
    """Certify L2 radii of the classifier smoothed by noise and one denoising step: randomised smoothing, with Clopper-Pearson bounds.

    Writes config.yaml, summary.json, images.jsonl (class, radius and counts of every image), and certified.png. A certificate is about the smoothed
    classifier, in L2, and holds for each image with probability 1 - alpha; it says nothing of a single purified draw.
    """
    from rich.console import Console

    from benchmarks import config as configs
    from benchmarks import runs
    from benchmarks.certify import Certify, table
    from benchmarks.certify_config import CertifyConfig
    from benchmarks.certify_figure import save_certified_curves

    settings = configs.load(CertifyConfig, config, overrides)
    if resume:
        configs.check_same(settings, _required_out(out) / "config.yaml")
    experiment = Certify(settings, runs.pick_device(device))
    folder = _required_out(out) if resume else runs.make_folder(out, "certify")
    with runs.locked(folder):
        if not resume:
            configs.dump(settings, folder / "config.yaml")
        with _said_how_to_go_on(folder):
            summary, certifications = experiment.run(folder, _say)
    save_certified_curves(certifications, folder / "certified.png")
    console = Console()
    console.print(table(summary))
    console.print(summary["claim"], highlight=False)
    console.print(f"results and figure: {folder}", soft_wrap=True)


@app.command()
def clean(
    images: Annotated[list[Path], typer.Argument(help="Image files (PNG, JPEG, ...).")],
    out: Out = None,
    score: Annotated[str, typer.Option(help="Packaged score model, or a .safetensors file.")] = "fashion-mnist",
    t_star: Annotated[float, typer.Option(help="Time to diffuse to, in (0, 1].")] = 0.1,
    steps: Annotated[int, typer.Option(help="Network evaluations on the way back.")] = 50,
    resize: Annotated[bool, typer.Option("--resize", help="Resize to the size that the network was trained on.")] = False,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Device = None,
) -> None:
    """Purify image files; results are PNG files of the same name in --out."""
    from benchmarks import runs
    from benchmarks.clean import clean as clean_files
    from purify import DiffPure, load_score_model

    where = runs.pick_device(device)
    purifier = DiffPure(load_score_model(score), t_star, steps).to(where)
    clean_files(purifier, images, lambda: runs.make_folder(out, "clean"), resize, seed, where, _say)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished `purify bench` runs, or of sweeps and comparisons.")],
    curve: Annotated[str | None, typer.Option(help="Draw accuracy against this setting, t_star or steps, into --out.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="PNG file of the curve.")] = None,
) -> None:
    """Print the results of several runs as one Markdown table, and draw a curve over them; print the tables of sweeps and comparisons again."""
    from rich.console import Console

    from benchmarks import report as reports
    from benchmarks.runs import RunError

    swept = {folder: result for folder in runs if (result := reports.read_points(folder)) is not None}
    summaries = [reports.read_summary(folder) for folder in runs if folder not in swept]
    for result in swept.values():
        Console().print(reports.sweep_table(result))
        for line in reports.failure_lines(result):
            _say(line)
    if summaries:
        print(reports.markdown(summaries))
    if curve is not None:
        if curve not in ("t_star", "steps"):
            raise RunError(f"--curve {curve!r} is not one of t_star, steps")
        if out is None:
            raise RunError("--curve needs --out FILE.png")
        if not summaries:
            raise RunError("--curve draws over bench runs: give the folders of a sweep's points, or see its sweep.png")
        from benchmarks.figures import save_curve

        save_curve(curve, reports.curves(summaries, curve), out)


@app.command()
def speed(
    score: Annotated[str, typer.Option(help="Packaged score model, or a .safetensors file.")] = "fashion-mnist",
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations of a purification.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; medians are reported.")] = 7,
    device: Device = None,
) -> None:
    """Time purification and its gradients against the bare network evaluations they contain, and attacks' averaged gradients against theirs."""
    from rich.console import Console
    from rich.table import Table

    from benchmarks import runs
    from benchmarks.speed import measure
    from purify import load_score_model

    where = runs.pick_device(device)
    result = measure(load_score_model(score), batch, steps, rounds, where)
    table = Table("part", "seconds", "ratio", title=f"{batch} images, {steps} evaluations, {runs.environment(where)['device']}")
    for group in (result, result["eot"]):
        for name, seconds in group["seconds"].items():
            table.add_row(name, f"{seconds:.3f}", f"{group['ratio'][name]:.2f}", end_section=name == list(group["seconds"])[-1])
    Console().print(table)


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a packaged configuration, e.g. fashion-mnist/train_score.")],
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
    resume: Resume = False,
) -> None:
    """Train a score network or a classifier.

    Ctrl-C or SIGTERM leaves a checkpoint; --resume goes on from it. At the end: the averaged weights as safetensors, and pictures.
    """
    import json

    from benchmarks import config as configs
    from benchmarks import runs
    from benchmarks.train import TrainConfig, Training

    settings = configs.load(TrainConfig, config, overrides)
    if resume:
        configs.check_same(settings, _required_out(out) / "config.yaml")
    training = Training(settings, runs.pick_device(device))
    folder = _required_out(out) if resume else runs.make_folder(out, "train")
    with runs.locked(folder):
        if not resume:
            configs.dump(settings, folder / "config.yaml")
        print(json.dumps(training.run(folder, resume, _say), indent=2))
    _say(f"weights and pictures: {folder}")


@models.command("list")
def models_list() -> None:
    """List the known checkpoints and data sets: what is here, and which packaged configurations use it."""
    from rich.console import Console

    from benchmarks.models import overview

    Console().print(overview())


@models.command("fetch")
def models_fetch(
    names: Annotated[
        list[str], typer.Argument(help="Names of `purify models list`; classifiers: robustbench:DATASET/THREAT/NAME, torchvision:NAME, timm:NAME.")
    ],
) -> None:
    """Download weights or data: resumed, checked, and moved into place at the end."""
    from benchmarks.models import fetch

    fetch(names, _say)


@models.command("verify")
def models_verify(names: Annotated[list[str] | None, typer.Argument(help="Names as for fetch. Default: all of the list that are here.")] = None) -> None:
    """Check size, checksum and, of score models, a strict load. The exit code is 1 where one fails."""
    from benchmarks.models import verify

    verdicts = verify(names or [])
    for verdict in verdicts:
        print(f"{verdict.state:<9} {verdict.name}: {verdict.text}")
    if not verdicts:
        _say("nothing is here yet; see `purify models list`")
    if any(verdict.state == "FAIL" for verdict in verdicts):
        raise typer.Exit(1)


@models.command("convert")
def models_convert(
    source: Annotated[str, typer.Argument(help="A name of `purify models list`, or a path.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The new file.")],
    architecture: Annotated[str | None, typer.Option(help="Of a path: a name in purify.networks.ARCHITECTURES.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a path: its official configuration as JSON, or the registry name of one like it.")] = None,
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float32",
) -> None:
    """Write a checkpoint's averaged weights as one safetensors file that describes itself."""
    from benchmarks.models import convert

    print(*convert(source, out, architecture, config, dtype), sep="\n")


@models.command("info")
def models_info(file: Annotated[Path, typer.Argument(help="A .safetensors, .pt, .pth, .ckpt or .pkl file.")]) -> None:
    """Say what a file holds, without loading its tensors or executing anything in it."""
    from benchmarks.models import info

    print(*info(file), sep="\n")


@contextmanager
def _said_how_to_go_on(folder: Path) -> Iterator[None]:
    """Tells who stops a run how to resume it."""
    try:
        yield
    except KeyboardInterrupt:
        _say(f"stopped; go on with the same command and --out {folder} --resume")
        raise


def _required_out(out: Path | None) -> Path:
    if out is None:
        raise ValueError("--resume needs --out: the folder of the run to go on with")
    return out


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Runs the command line: exit code 2 and one message for bad input, 130 after Ctrl-C."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("PURIFY_DEBUG"):
            raise
        _say(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
