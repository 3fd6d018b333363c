"""`purify models`."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli.machine_readable import in_folder, plain
from benchmarks.cli.options import Device, Out
from benchmarks.cli.run import Run
from benchmarks.cli.session import EXIT_CODES, Result, Session, command, group

models = typer.Typer(no_args_is_help=True, help="Weights: list, fetch, verify, convert, look into, describe.")


@models.callback()
@group
def about(session: Session, context: typer.Context) -> None:
    """Weights: list, fetch, verify, convert, look into, describe."""


@models.command("list", epilog=EXIT_CODES)
@command
def models_list(session: Session) -> Result:
    """List the known checkpoints and data sets: what is here, and which packaged configurations use it."""
    from benchmarks.experiments.models import known, overview

    found = known()
    session.show(overview(found))
    return found


@models.command("fetch", epilog=EXIT_CODES)
@command
def models_fetch(
    session: Session,
    names: Annotated[
        list[str],
        typer.Argument(
            help=(
                "Names of `purify models list`; classifiers: robustbench:DATASET/THREAT/NAME, torchvision:NAME,"
                " timm:NAME."
            )
        ),
    ],
) -> Result:
    """Download weights or data: resumed, checked, and moved into place at the end."""
    from benchmarks.experiments.models import fetch

    return [{"name": name, "files": files} for name, files in fetch(names, session.say).items()]


@models.command("verify", epilog=EXIT_CODES)
@command
def models_verify(
    session: Session,
    names: Annotated[
        list[str] | None, typer.Argument(help="Names as for fetch. Default: all of the list that are here.")
    ] = None,
) -> Result:
    """Check size, checksum and, of score models, a strict load. The exit code is 1 where one fails."""
    from benchmarks.experiments.models import verify

    verdicts = verify(names or [])
    for verdict in verdicts:
        say = session.warning if verdict.state == "FAIL" else session.print
        say(f"{verdict.state:<9} {verdict.name}: {verdict.text}")
    if not verdicts:
        session.say("nothing is here yet; see `purify models list`")
    session.failed = any(verdict.state == "FAIL" for verdict in verdicts)
    return verdicts


@models.command("convert", epilog=EXIT_CODES)
@command
def models_convert(
    session: Session,
    source: Annotated[str, typer.Argument(help="A name of `purify models list`, or a path.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The new file.")],
    architecture: Annotated[
        str | None, typer.Option(help="Of a path: a name in purify.networks.ARCHITECTURES.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="Of a path: its official configuration as JSON, or the registry name of one like it."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float32",
) -> Result:
    """Write a checkpoint's averaged weights as one safetensors file that describes itself."""
    from benchmarks.experiments.models import convert

    for line in convert(source, out, architecture, config, dtype):
        session.print(line)
    return {"source": source, "file": out, "bytes": out.stat().st_size, "dtype": dtype}


@models.command("info", epilog=EXIT_CODES)
@command
def models_info(
    session: Session,
    file: Annotated[Path, typer.Argument(help="A .safetensors, .pt, .pth, .ckpt or .pkl file, or a packaged name.")],
) -> Result:
    """Say what a file holds, without loading its tensors or executing anything in it."""
    from benchmarks.experiments.models import info_lines, look_into

    path, found = look_into(file)
    for line in info_lines(path, found):
        session.print(line)
    return {"file": path, **plain(found)}


@models.command("card", epilog=EXIT_CODES)
@command
def models_card(
    session: Session,
    name: Annotated[str, typer.Argument(help="A packaged score model, a name of `purify models list`, or a path.")],
    test: Annotated[
        str,
        typer.Option(
            help="Data set of images that it was not trained on, e.g. cifar10-test; the first 1,000 are measured."
        ),
    ],
    train: Annotated[
        str | None,
        typer.Option(
            help=(
                "What it was trained on: its errors are compared with those of a linear denoiser fitted to these"
                " images."
            )
        ),
    ] = None,
    class_label: Annotated[
        int | None, typer.Option(help="Of a class-conditional model: the class whose images it is to describe.")
    ] = None,
    note: Annotated[
        list[str] | None, typer.Option(help="What else a user of the model should know: licence, use; repeatable.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Folder of the data sets' files. Default: $PURIFY_DATA.")] = None,
    out: Out = None,
    device: Device = None,
) -> Result:
    """Write a model card: what a score model is, its denoising error by noise level, denoised, purified and sampled
    images.

    Writes README.md, card.json and PNG files.
    """
    from benchmarks import datasets
    from benchmarks.experiments.card import Card
    from purify import zoo

    run = Run(session, "card", out, device)
    where = run.device
    model = zoo.load_score_model(name)
    if class_label is not None:
        model = model.with_class(class_label)
    test_set, train_set = datasets.load(test, root), None if train is None else datasets.load(train, root)
    card = Card(Path(name).name, model.to(where), test_set, train_set, test, train, note or ())
    folder = run.make_folder()
    known = name in zoo.registry.entries() or Path(name).is_dir()
    numbers = card.write(folder, None if known else zoo.find_score_model(name), session.say)
    session.say(f"model card: {folder / 'README.md'}")
    return in_folder(folder, numbers)
