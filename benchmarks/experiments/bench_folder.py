"""A bench run in its folder: its configuration, its results, its figures. What `purify bench`, and every point of a
sweep, does.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import config as configs
from benchmarks import runs
from benchmarks.evaluation.evaluate import fixed_key
from benchmarks.experiments.bench import Bench
from benchmarks.experiments.bench_rows import Measurement
from benchmarks.reports.figures import save_accuracy_chart, save_attack_grid
from benchmarks.runs.schema import Summary
from purify import DefendedClassifier, noise_keys


def run_in_folder(
    experiment: Bench, folder: Path, say: Callable[[str], None], resume: bool = False, diagnose: bool = False
) -> tuple[Summary, list[Measurement]]:
    """Writes the configuration, measures what is missing, and draws the figures.

    Args:
        experiment: the checked experiment.
        folder: exists; holds the begun run with `resume`, else nothing.
        say: gets a line per row.
        resume: whether the folder's configuration is there already.
        diagnose: see `Bench.run`.

    Returns:
        The summary, and the rows with what was measured.

    Raises:
        RunError: another process is at work in the folder, or it holds batches of another run.
    """
    with runs.locked(folder):
        if not resume:
            configs.dump(experiment.settings, folder / "config.yaml")
        summary, evaluations = experiment.run(folder, say, diagnose)
    save_accuracy_chart(summary, folder / "accuracy.png")
    _save_pictures(experiment, evaluations, folder)
    return summary, evaluations


def _save_pictures(experiment: Bench, evaluations: list[Measurement], folder: Path) -> None:
    """The first images under every attack on the defence."""
    settings = experiment.settings
    count = min(settings.pictures, len(experiment.x))
    for row, evaluation in evaluations if count else []:
        if isinstance(row.model, DefendedClassifier) and row.attack is not None:
            x, x_adv, y = experiment.x[:count], evaluation.x_adv[:count].to(experiment.device), experiment.y[:count]
            keys = noise_keys(settings.seed, experiment.image_ids[:count], 0)
            if row.randomness == "fixed":
                keys = torch.full_like(keys, fixed_key(settings.seed, 0))
            path = folder / f"images_{row.attack_name}.png"
            save_attack_grid(
                x, x_adv, y, keys, experiment.setup.classifier, row.model.purifier, experiment.setup.classes, path
            )
