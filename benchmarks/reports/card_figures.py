"""Pictures of a score model, as PNG files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from benchmarks.evaluation.denoising import batch_of
from benchmarks.reports.figures import save_image_grid
from benchmarks.runs.schema.card import DenoisingRow
from purify import DiffPure, noise_keys
from purify.noise import Stage, standard_normal
from purify.score.model import ScoreModel


def save_denoising_curve(rows: Sequence[DenoisingRow], path: Path) -> None:
    """Denoising error against the noise level, of the network and of the linear denoiser, where there is one."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for label, errors, style in (
        ("network", [row.mse for row in rows], "o-"),
        ("linear denoiser of the training images", [row.linear_mse for row in rows], "s--"),
    ):
        points = [(row.t, error) for row, error in zip(rows, errors, strict=True) if error is not None]
        if points:
            axis.plot(*zip(*points, strict=True), style, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("t (of the linear VP process)")
    axis.set_ylabel("mean squared error per pixel, images in [-1, 1]")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@torch.no_grad()
def save_denoised_images(model: ScoreModel, images: Tensor, times: Mapping[float, float], path: Path) -> None:
    """Clean images (n, c, h, w) in [0, 1], and for each t the noisy image beside E[x0 | x_t]; `times` as of
    `benchmarks.evaluation.denoising.own_times`.
    """
    x0 = model.from_unit(images.to(next(model.parameters()).device))
    noise = standard_normal(
        noise_keys(0, torch.arange(len(x0), device=x0.device), 0), Stage.FORWARD, 0, tuple(x0.shape[1:])
    )
    columns = [("clean", images)]
    for name, t in times.items():
        x_t = model.diffuse(x0, noise, t)
        columns += [
            (f"t = {name:g}", model.to_unit(x_t)),
            (f"E[x0 | x_{name:g}]", model.to_unit(model.denoised(x_t, t))),
        ]
    save_image_grid(columns, {}, path)


@torch.no_grad()
def save_purified_images(
    model: ScoreModel, images: Tensor, times: Mapping[float, float], path: Path, steps: int = 20
) -> None:
    """Clean images (n, c, h, w) in [0, 1], and for each t* two draws of their purified versions."""
    device = next(model.parameters()).device
    columns = [("clean", images)]
    for name, t in times.items():
        purifier = DiffPure(model, t_star=t, steps=steps, solver="dpm++", eta=1)
        for draw in range(2):
            columns.append(
                (
                    f"t* = {name:g}, draw {draw + 1}",
                    purifier(images.to(device), noise_keys(0, torch.arange(len(images), device=device), draw)),
                )
            )
    save_image_grid(columns, {}, path)


@torch.no_grad()
def save_samples(model: ScoreModel, shape: tuple[int, ...], path: Path, rows: int = 6, steps: int = 100) -> None:
    """Samples (c, h, w) from pure noise, fewer of large images: the reverse SDE from t_max, in equal steps of the log
    signal-to-noise ratio, which no process makes too large. Only meaningful where next to nothing is left of an image
    at t_max.
    """
    device = next(model.parameters()).device
    purifier = DiffPure(model, t_star=model.t_max, steps=steps, solver="dpm++", eta=1, grid="log_snr")
    rows = max(2, min(rows, math.isqrt(batch_of(shape))))
    keys = noise_keys(0, torch.arange(rows * rows, device=device), 0)
    blank = torch.full((rows, *shape), 0.5, device=device)
    save_image_grid([("", purifier(blank, column)) for column in torch.split(keys, rows)], {}, path)
