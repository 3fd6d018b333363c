"""`purify clean`."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli.options import Device, Out, flag
from benchmarks.cli.run import Run
from benchmarks.cli.session import Result, Session, command


@command
def clean(
    session: Session,
    images: Annotated[list[Path], typer.Argument(help="Image files (PNG, JPEG, ...).")],
    out: Out = None,
    score: Annotated[str, typer.Option(help="Packaged score model, or a .safetensors file.")] = "fashion-mnist",
    t_star: Annotated[float, typer.Option(help="Time to diffuse to, in (0, 1].")] = 0.1,
    steps: Annotated[int, typer.Option(help="Network evaluations on the way back.")] = 50,
    resize: Annotated[bool, flag("--resize", help="Resize to the size that the network was trained on.")] = False,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Device = None,
) -> Result:
    """Purify image files; results are PNG files of the same name in --out."""
    from benchmarks.experiments.clean import clean as clean_files
    from purify import DiffPure, load_score_model

    run = Run(session, "clean", out, device)
    purifier = DiffPure(load_score_model(score), t_star, steps).to(run.device)
    written = clean_files(purifier, images, run.make_folder, resize, seed, run.device, session.say)
    return {
        "folder": written[0].parent,
        "images": [{"file": file, "purified": path} for file, path in zip(images, written, strict=True)],
    }
