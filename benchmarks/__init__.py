"""Benchmarks of purification defences: data, classifiers, configuration, evaluation and the command line.

What is public stands in `__init__.pyi`. It is imported when it is first asked for: `purify --help` needs no torch.

Importing this package also makes `import robustbench` work, see `benchmarks.robustbench_bridge`.
"""

import lazy_loader

from benchmarks import robustbench_bridge
from purify import moved

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

robustbench_bridge.install()

MOVED = {
    "attack_config": "config.attack",
    "attack_kinds": "config.attack_kinds",
    "audit": "experiments.audit",
    "beginnings": "evaluation.beginnings",
    "bench": "experiments.bench",
    "bench_config": "config.bench",
    "bench_folder": "experiments.bench_folder",
    "card": "experiments.card",
    "card_figures": "reports.card_figures",
    "certification": "evaluation.certification",
    "certify": "experiments.certify",
    "certify_config": "config.certify",
    "certify_figure": "reports.certify_figure",
    "clean": "experiments.clean",
    "conventions": "experiments.conventions",
    "cost_estimate": "experiments.cost_estimate",
    "denoising": "evaluation.denoising",
    "diagnostics": "evaluation.diagnostics",
    "figures": "reports.figures",
    "markdown": "reports.markdown",
    "memory": "experiments.memory",
    "models": "experiments.models",
    "perceptual_kinds": "config.perceptual_kinds",
    "published_adjoint": "experiments.published_adjoint",
    "purifier_config": "config.purifier",
    "report": "reports.terminal",
    "rivals": "experiments.rivals",
    "setup": "experiments.setup",
    "speed": "experiments.speed",
    "statistics": "evaluation.statistics",
    "sweep": "experiments.sweep",
    "sweep_config": "config.sweep",
    "sweep_figures": "reports.sweep_figures",
    "targets": "evaluation.targets",
    "train": "experiments.train",
    "train_config": "config.train",
    "verdicts": "experiments.audit_verdicts",
}
"""Modules under the names that they had before version 0.2."""

moved.install("benchmarks", MOVED)
