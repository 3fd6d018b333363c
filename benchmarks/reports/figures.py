"""Pictures, as PNG files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from benchmarks.evaluation.statistics import Estimate
from benchmarks.reports.text import Interval
from benchmarks.runs.schema import Result, Summary
from benchmarks.runs.schema.audit import GradientRow


def save_image_grid(
    columns: Sequence[tuple[str, Tensor]],
    captions: Mapping[str, Sequence[str]],
    path: Path,
    caption_colors: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Images side by side.

    Args:
        columns: (title, images (n, c, h, w) in about [0, 1]); shown clamped.
        captions: title -> n texts below the images of that column.
        path: PNG file.
        caption_colors: title -> n colours of the captions.
    """
    rows = len(columns[0][1])
    figure, axes = plt.subplots(
        rows, len(columns), figsize=(1.45 * len(columns), 1.6 * rows), squeeze=False, layout="constrained"
    )
    for j, (title, images) in enumerate(columns):
        shown = images.detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()
        for i in range(rows):
            axis = axes[i, j]
            axis.imshow(
                shown[i, :, :, 0] if shown.shape[3] == 1 else shown[i],
                cmap="gray",
                vmin=0,
                vmax=1,
                interpolation="nearest",
            )
            axis.set_xticks([])
            axis.set_yticks([])
            if i == 0:
                axis.set_title(title, fontsize=9)
            if title in captions:
                axis.set_xlabel(
                    captions[title][i], fontsize=8, color=caption_colors[title][i] if caption_colors else "black"
                )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def save_attack_grid(
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    keys: Tensor,
    classifier: Callable[[Tensor], Tensor],
    purifier: Callable[[Tensor, Tensor], Tensor],
    classes: Sequence[str],
    path: Path,
) -> None:
    """Clean, adversarial, perturbation (amplified), and both purified, with predictions: green where right."""
    with torch.no_grad():
        purified, purified_adv = purifier(x, keys), purifier(x_adv, keys)
        shown = {"clean": x, "adversarial": x_adv, "purified clean": purified, "purified adversarial": purified_adv}
        predictions = {title: classifier(images).argmax(1) for title, images in shown.items()}
    delta = x_adv - x
    gain = 0.5 / float(delta.abs().max().clamp_min(1e-8))
    amplified = f"perturbation x{gain:.1f}"
    order = [
        ("clean", x),
        ("adversarial", x_adv),
        (amplified, 0.5 + gain * delta),
        ("purified adversarial", purified_adv),
        ("purified clean", purified),
    ]
    captions = {title: [classes[int(p)] for p in labels] for title, labels in predictions.items()}
    colors = {
        title: ["green" if right else "red" for right in (labels == y).tolist()]
        for title, labels in predictions.items()
    }
    save_image_grid(order, captions, path, colors)


def save_accuracy_chart(summary: Summary, path: Path) -> None:
    """Accuracy of every row: single draw, worst of N, majority of N, with 95 % intervals."""
    results, n = summary.results, summary.draws
    kinds: dict[str, Callable[[Result], Estimate | None]] = {
        "single draw": lambda r: r.single,
        f"majority of {n}": lambda r: (r.majority or {}).get(n),
        f"worst of {n}": lambda r: r.worst_of[n],
    }
    figure, axis = plt.subplots(figsize=(1.6 + 1.3 * len(results), 4), layout="constrained")
    for k, (label, pick) in enumerate(kinds.items()):
        bars = [(i, estimate) for i, r in enumerate(results) if (estimate := pick(r)) is not None]
        estimates = [estimate for _, estimate in bars]
        axis.bar(
            [i + (k - 1) * 0.27 for i, _ in bars],
            [estimate.value for estimate in estimates],
            0.27,
            yerr=errors_of(estimates),
            capsize=3,
            label=label,
        )
    axis.set_xticks(range(len(results)), [f"{r.model}\n{r.attack}" for r in results], fontsize=8)
    axis.set_ylim(0, 1)
    axis.set_ylabel("accuracy")
    axis.set_title(f"{summary.images} images, 95 % intervals", fontsize=10)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def errors_of(estimates: Sequence[Interval]) -> list[list[float]]:
    """Distances down and up to the interval's ends; rounding may put a value beyond one by an ulp."""
    return [
        [max(0.0, e.value - e.ci95[0]) for e in estimates],
        [max(0.0, e.ci95[1] - e.value) for e in estimates],
    ]


def save_curve(x_name: str, lines: Mapping[str, Sequence[tuple[float, Estimate]]], path: Path) -> None:
    """Accuracy against a setting: label -> (value of the setting, accuracy) of every run."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for label, points in lines.items():
        points = sorted(points, key=lambda point: point[0])
        xs, values = [x for x, _ in points], [estimate.value for _, estimate in points]
        (line,) = axis.plot(xs, values, marker="o", label=label)
        axis.fill_between(
            xs, [e.ci95[0] for _, e in points], [e.ci95[1] for _, e in points], alpha=0.15, color=line.get_color()
        )
    axis.set_xlabel(x_name)
    axis.set_ylabel("accuracy")
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_audit_chart(rows: Sequence[GradientRow], path: Path) -> None:
    """Relative error and cosine of every gradient mode against t*, a line for each number of steps."""
    modes = list(dict.fromkeys(row.mode for row in rows if row.mode != "backprop"))
    counts = sorted({row.steps for row in rows})
    styles = ["-", "--", ":", "-."]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for i, mode in enumerate(modes):
        for j, steps in enumerate(counts):
            points = sorted((r for r in rows if (r.mode, r.steps) == (mode, steps)), key=lambda r: r.t_star)
            xs = [r.t_star for r in points]
            look: dict[str, Any] = {
                "color": f"C{i}",
                "linestyle": styles[j % len(styles)],
                "marker": "osdxv"[i % 5],
                "markersize": 4,
                "linewidth": 2.2 - 0.5 * i,
            }
            left.plot(xs, [r.relative_error for r in points], **look)
            right.plot(xs, [r.cosine.median for r in points], **look, label=f"{mode}, {steps} steps")
            right.fill_between(
                xs, [r.cosine.min for r in points], [r.cosine.max for r in points], color=f"C{i}", alpha=0.06
            )
    left.set_yscale("log")
    left.axhline(1, color="grey", linewidth=0.8)
    left.set_title("relative error (at 1, no gradient at all is as good)", fontsize=10)
    right.set_title("cosine: median and range over images", fontsize=10)
    figure.suptitle("gradient modes against the float64 gradient", fontsize=11)
    for axis in (left, right):
        axis.set_xlabel("t*")
        axis.grid(alpha=0.3)
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)
