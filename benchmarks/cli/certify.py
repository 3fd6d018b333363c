"""`purify certify`."""

from typing import Annotated

import typer

from benchmarks.cli.machine_readable import in_folder
from benchmarks.cli.options import Device, Out, Overrides, Resume, complete_config
from benchmarks.cli.run import Run
from benchmarks.cli.session import Result, Session, command


@command
def certify(
    session: Session,
    config: Annotated[
        str,
        typer.Argument(help="A YAML file, or the name of a packaged configuration.", autocompletion=complete_config),
    ] = "fashion-mnist/certify",
    out: Out = None,
    overrides: Overrides = None,
    device: Device = None,
    resume: Resume = False,
) -> Result:
    """Certify L2 radii of the classifier smoothed by noise and one denoising step: randomised smoothing, with
    Clopper-Pearson bounds.

    Writes config.yaml, summary.json, images.jsonl (class, radius and counts of every image), and certified.png. A
    certificate is about the smoothed classifier, in L2, and holds for each image with probability 1 - alpha; it says
    nothing of a single purified draw.
    """
    from benchmarks import config as configs
    from benchmarks.config.certify import CertifyConfig
    from benchmarks.experiments.certify import Certify
    from benchmarks.reports.certify_figure import save_certified_curves
    from benchmarks.reports.terminal import certify_table

    run = Run(session, "certify", out, device, resume)
    settings = run.load(CertifyConfig, config, overrides or [])
    experiment = Certify(settings, run.device)
    with run.folder(lambda path: configs.dump(settings, path)) as folder:
        summary, certifications = experiment.run(folder, session.say)
    save_certified_curves(certifications, folder / "certified.png")
    session.show(certify_table(summary), summary.claim)
    session.print(f"results and figure: {folder}")
    return in_folder(folder, summary)
