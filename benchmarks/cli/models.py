"""`purify models`."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli.options import Device, Out, say

models = typer.Typer(no_args_is_help=True, help="Weights: list, fetch, verify, convert, look into, describe.")


@models.command("list")
def models_list() -> None:
    """List the known checkpoints and data sets: what is here, and which packaged configurations use it."""
    from rich.console import Console

    from benchmarks.experiments.models import overview

    Console().print(overview())


@models.command("fetch")
def models_fetch(
    names: Annotated[
        list[str],
        typer.Argument(
            help=(
                "Names of `purify models list`; classifiers: robustbench:DATASET/THREAT/NAME, torchvision:NAME,"
                " timm:NAME."
            )
        ),
    ],
) -> None:
    """Download weights or data: resumed, checked, and moved into place at the end."""
    from benchmarks.experiments.models import fetch

    fetch(names, say)


@models.command("verify")
def models_verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names as for fetch. Default: all of the list that are here.")
    ] = None,
) -> None:
    """Check size, checksum and, of score models, a strict load. The exit code is 1 where one fails."""
    from benchmarks.experiments.models import verify

    verdicts = verify(names or [])
    for verdict in verdicts:
        print(f"{verdict.state:<9} {verdict.name}: {verdict.text}")
    if not verdicts:
        say("nothing is here yet; see `purify models list`")
    if any(verdict.state == "FAIL" for verdict in verdicts):
        raise typer.Exit(1)


@models.command("convert")
def models_convert(
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
) -> None:
    """Write a checkpoint's averaged weights as one safetensors file that describes itself."""
    from benchmarks.experiments.models import convert

    print(*convert(source, out, architecture, config, dtype), sep="\n")


@models.command("info")
def models_info(
    file: Annotated[Path, typer.Argument(help="A .safetensors, .pt, .pth, .ckpt or .pkl file, or a packaged name.")],
) -> None:
    """Say what a file holds, without loading its tensors or executing anything in it."""
    from benchmarks.experiments.models import info

    print(*info(file), sep="\n")


@models.command("card")
def models_card(
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
) -> None:
    """Write a model card: what a score model is, its denoising error by noise level, denoised, purified and sampled
    images.

    Writes README.md, card.json and PNG files.
    """
    from benchmarks import datasets, runs
    from benchmarks.experiments.card import Card
    from purify import zoo

    where = runs.pick_device(device)
    model = zoo.load_score_model(name)
    if class_label is not None:
        model = model.with_class(class_label)
    test_set, train_set = datasets.load(test, root), None if train is None else datasets.load(train, root)
    card = Card(Path(name).name, model.to(where), test_set, train_set, test, train, note or ())
    folder = runs.make_folder(out, "card")
    known = name in zoo.registry.entries() or Path(name).is_dir()
    card.write(folder, None if known else zoo.find_score_model(name), say)
    say(f"model card: {folder / 'README.md'}")
