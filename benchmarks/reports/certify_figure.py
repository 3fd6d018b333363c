"""The figure of `purify certify`: certified accuracy against radius, as a PNG file."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt

from benchmarks.evaluation.certification import Certification

_POINTS = 400


def save_certified_curves(certifications: Sequence[Certification], path: Path) -> None:
    """One line for each noise level, with its 95 % Wilson intervals, which are pointwise."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    one = certifications[0]
    radii = np.linspace(0, 1.05 * max(float(c.radii.max()) for c in certifications) or 1.0, _POINTS)
    for certification in certifications:
        estimates = [certification.certified_accuracy(radius) for radius in radii]
        (line,) = axis.plot(
            radii,
            [e.value for e in estimates],
            drawstyle="steps-post",
            label=f"sigma = {certification.sigma:g}, radii to {certification.largest_radius:.2f} seen by {one.n} draws",
        )
        axis.fill_between(
            radii,
            [e.ci95[0] for e in estimates],
            [e.ci95[1] for e in estimates],
            alpha=0.15,
            step="post",
            color=line.get_color(),
        )
    axis.set_xlabel("certified L2 radius, images in [0, 1]")
    axis.set_ylabel("certified accuracy")
    axis.set_xlim(0, float(radii[-1]))
    axis.set_ylim(0, 1)
    axis.set_title(f"{len(one.labels)} images, {one.n} draws each, alpha = {one.alpha:g}", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
