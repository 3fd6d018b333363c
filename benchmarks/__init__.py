"""Benchmarks of purification defences: data, classifiers, configuration, evaluation and the command line.

Importing this package also makes `import robustbench` work, see `benchmarks.robustbench_bridge`.
"""

from benchmarks import robustbench_bridge
from benchmarks.classifiers import load_classifier
from benchmarks.evaluate import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate", "load_classifier"]

robustbench_bridge.install()
