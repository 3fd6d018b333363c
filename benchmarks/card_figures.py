"""Pictures of a score model, as PNG files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from benchmarks.figures import save_image_grid
from purify import DiffPure, noise_keys
from purify.noise import Stage, standard_normal
from purify.score import ScoreModel


def save_denoising_curve(errors: Mapping[str, float], linear: Mapping[str, float] | None, path: Path) -> None:
    """Denoising error against the noise level, of the network and of the linear denoiser, where there is one."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for label, values, style in (("network", errors, "o-"), ("linear denoiser of the training images", linear, "s--")):
        if values is not None:
            axis.plot([float(t) for t in values], list(values.values()), style, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("t (of the linear VP process)")
    axis.set_ylabel("mean squared error per pixel, images in [-1, 1]")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@torch.no_grad()
def save_denoised_images(model: ScoreModel, images: Tensor, times: Mapping[str, float], path: Path) -> None:
    """Clean images (n, c, h, w) in [0, 1], and for each t the noisy image beside E[x0 | x_t]; `times` as of `benchmarks.denoising.own_times`."""
    x0 = model.from_unit(images.to(next(model.parameters()).device))
    noise = standard_normal(noise_keys(0, torch.arange(len(x0), device=x0.device), 0), Stage.FORWARD, 0, tuple(x0.shape[1:]))
    columns = [("clean", images)]
    for name, t in times.items():
        x_t = model.diffuse(x0, noise, t)
        columns += [(f"t = {name}", model.to_unit(x_t)), (f"E[x0 | x_{name}]", model.to_unit(model.denoised(x_t, t)))]
    save_image_grid(columns, {}, path)


@torch.no_grad()
def save_purified_images(model: ScoreModel, images: Tensor, times: Mapping[str, float], path: Path, steps: int = 20) -> None:
    """Clean images (n, c, h, w) in [0, 1], and for each t* two draws of their purified versions."""
    device = next(model.parameters()).device
    columns = [("clean", images)]
    for name, t in times.items():
        purifier = DiffPure(model, t_star=t, steps=steps, solver="dpm++", eta=1)
        for draw in range(2):
            columns.append((f"t* = {name}", purifier(images.to(device), noise_keys(0, torch.arange(len(images), device=device), draw))))
    save_image_grid(columns, {}, path)


@torch.no_grad()
def save_samples(model: ScoreModel, path: Path, rows: int = 6, steps: int = 200) -> None:
    """Samples from pure noise: the reverse SDE from t_max. Only meaningful where next to nothing is left of an image at t_max."""
    assert model.image_shape is not None
    device = next(model.parameters()).device
    purifier = DiffPure(model, t_star=model.t_max, steps=steps, grid="quadratic")
    blank = torch.full((rows * rows, *model.image_shape), 0.5, device=device)
    samples = purifier(blank, noise_keys(0, torch.arange(len(blank), device=device), 0))
    save_image_grid([("", column) for column in samples.split(rows)], {}, path)
