"""`purify train`."""

from typing import Annotated

import typer

from benchmarks.cli.machine_readable import in_folder
from benchmarks.cli.options import Device, Out, Overrides, Resume, complete_config
from benchmarks.cli.run import Run
from benchmarks.cli.session import Result, Session, command


@command
def train(
    session: Session,
    config: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of a packaged configuration, e.g. fashion-mnist/train_score.",
            autocompletion=complete_config,
        ),
    ],
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
    resume: Resume = False,
) -> Result:
    """Train a score network or a classifier.

    Ctrl-C or SIGTERM leaves a checkpoint; --resume goes on from it. At the end: the averaged weights as safetensors,
    and pictures.
    """
    import json

    from benchmarks import config as configs
    from benchmarks.config.train import TrainConfig
    from benchmarks.experiments.train import Training

    run = Run(session, "train", out, device, resume)
    settings = run.load(TrainConfig, config, overrides or [])
    training = Training(settings, run.device)
    with run.folder(lambda path: configs.dump(settings, path)) as folder:
        quality = training.run(folder, resume, session.say)
    session.print(json.dumps(quality, indent=2))
    session.say(f"weights and pictures: {folder}")
    return in_folder(folder, quality)
