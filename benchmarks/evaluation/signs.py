"""The signs of a broken evaluation by name, and what to do about each."""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.evaluation.statistics import PairedDifference

LEAST_IMAGES = 8
"""With fewer images no difference between two rows has so small a p-value: that of n images is 2 / 2^n at the least."""

ZERO_GRADIENTS, BROKEN_GRADIENTS = "gradients exactly zero", "gradients NaN or infinite"
NOISE, LARGE_EPSILON = "noise as good as the attack", "robust at a large epsilon"
ONE_STEP, QUERIES, TRANSFER = "single step beats iterations", "queries beat gradients", "transfer beats white box"
RISING, UNCONVERGED = "accuracy rises with epsilon", "EOT not converged"
LOST, NO_CLEAN_ROW = "images lost without any attack", "no clean row"

COMPARISONS = {
    ONE_STEP: (
        "the steps undo each other or the gradient is masked: more iterations, a smaller step, momentum, other losses"
    ),
    QUERIES: "the gradients are masked: find out by `purify audit` where, and report the lower number",
    TRANSFER: (
        "the deployed model's gradients are worse than another model's: masked, or too noisy (more EOT); report the"
        " lower number"
    ),
    RISING: (
        "a larger ball holds the smaller one: start the attack from the smaller ball's result, take steps in proportion"
        " to epsilon, more iterations"
    ),
    UNCONVERGED: "more draws per gradient: double eot from {eot} until the accuracy stays",
}
"""What to do where a row beats another one that should be the stronger one."""

SIGNS = (ZERO_GRADIENTS, BROKEN_GRADIENTS, NOISE, *COMPARISONS, LARGE_EPSILON, LOST)
"""All that rows are looked through for, but a missing clean row."""


@dataclass(frozen=True)
class Flag:
    """A sign of a broken evaluation.

    Attributes:
        sign: which one.
        model, attack: the row that is in doubt; `compared_with` the row that raises the doubt, if any.
        seen: what was seen; `advice`: what to do.
        difference: in accuracy, of the doubted row minus the other one, with its 95 % interval and p-value.
    """

    sign: str
    model: str
    attack: str
    seen: str
    advice: str
    compared_with: str | None = None
    difference: PairedDifference | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"difference": None if self.difference is None else self.difference.as_dict()}
