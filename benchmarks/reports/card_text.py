"""A model card's text."""

from collections.abc import Mapping
from typing import Any

import yaml

from benchmarks.runs.schema import CardNumbers
from benchmarks.runs.schema.card import DenoisingRow
from purify.score.model import ScoreModel

CURVE, DENOISED, PURIFIED, SAMPLES = "denoising.png", "denoised.png", "purified.png", "samples.png"


def card_text(numbers: CardNumbers, model: ScoreModel, samples: bool, plenty: bool) -> list[str]:
    """The lines of a card.

    Args:
        numbers: what was measured.
        model: the score model.
        samples: whether there is a picture of samples.
        plenty: whether the linear denoiser was fitted to so many images that it is about the best there is.
    """
    return [
        f"# {numbers.name}",
        "",
        *_facts(numbers, model),
        "",
        "## Training",
        "",
        *_training(numbers.provenance),
        "## Denoising error",
        "",
        *_errors(numbers, plenty),
        "",
        f"![denoising error against the noise level]({CURVE})",
        "",
        "## Pictures",
        "",
        (
            "Noisy images, and the network's estimate E[x0 | x_t] (one evaluation each, images of"
            f" `{numbers.test_data}`):"
        ),
        "",
        f"![clean, noisy, denoised]({DENOISED})",
        "",
        "Purified: diffused to t\\* and solved back in 20 evaluations of SDE-DPM-Solver++, two draws each:",
        "",
        f"![clean and purified]({PURIFIED})",
        "",
        *_samples(samples),
        "",
        "## Notes and limits",
        "",
        *(f"- {note}" for note in (*numbers.notes, *_limits(numbers, model))),
    ]


def _facts(numbers: CardNumbers, model: ScoreModel) -> list[str]:
    provenance = numbers.provenance
    shape = "x".join(map(str, model.image_shape)) if model.image_shape else "any size"
    low, high = model.value_range
    config = provenance["config"] if _is_ours(provenance) else {}
    network = f"`{config['architecture']}`, `{config['network']}`" if config else f"`{type(model.network).__name__}`"
    size = ""
    if numbers.file_bytes:
        bits = round(8 * numbers.file_bytes / numbers.parameters)
        size = f", a file of {numbers.file_bytes / 1e6:.1f} MB ({bits} bits a number)"
    facts = {
        "images": f"{shape}, in [{low:g}, {high:g}]",
        "process": f"`{model.schedule}`, trained up to its time {model.t_max:g}",
        "network": f"{network}: {numbers.parameters / 1e6:.1f} M parameters; it predicts {model.prediction}",
        "weights": f"fingerprint `{numbers.weights[:16]}`{size}",
        "measured with": f"torch {numbers.environment['torch']} on {numbers.environment['device']}",
    }
    return ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in facts.items())]


def _errors(numbers: CardNumbers, plenty: bool) -> list[str]:
    what = (
        f"Mean squared error of E[x0 | x_t] per pixel, images in [-1, 1], on the first {numbers.test_images:,}"
        f" of `{numbers.test_data}`, one draw of noise each. Noise levels are given as times t of the linear VP"
        " process, and as sigma/alpha, the noise on images in [-1, 1]."
    )
    columns = ["t", "sigma/alpha", "network"]
    if numbers.linear_denoiser is not None:
        columns += ["linear", "ratio"]
        what += (
            f" Beside it a linear (Wiener) denoiser, fitted to the {numbers.linear_denoiser.images:,} images of"
            f" `{numbers.linear_denoiser.data}`."
        )
        if not plenty:
            what += " These are few for so many pixels: with more, it would do better, and the ratio would be larger."
    rows = [" | ".join(_error_cells(row)) for row in numbers.denoising]
    lines = [" | ".join(columns), *rows]
    head, *body = (f"| {line} |" for line in lines)
    return [what, "", head, "|---" * len(columns) + "|", *body]


def _error_cells(row: DenoisingRow) -> list[str]:
    cells = [f"{row.t:g}", f"{row.noise_level:.3f}", f"{row.mse:.5f}"]
    return cells if row.linear_mse is None else [*cells, f"{row.linear_mse:.5f}", f"{row.ratio:.3f}"]


def _samples(there: bool) -> list[str]:
    if there:
        return ["Samples from pure noise, 100 evaluations of SDE-DPM-Solver++:", "", f"![samples]({SAMPLES})"]
    return [
        "No samples from pure noise: at the largest t that it was trained on, images are not yet noise. The draws"
        " at the largest t\\* show what it adds."
    ]


def _limits(numbers: CardNumbers, model: ScoreModel) -> list[str]:
    limits = [
        note for stage in _stages(numbers.provenance) if _is_ours(stage) for note in stage["config"].get("notes", [])
    ]
    if model.t_max < model.schedule.t_max:
        limits.append(f"Trained up to time {model.t_max:g} of its process: purifiers that diffuse further are refused.")
    limits.append(
        "A small denoising error does not make a defence: how robust it is, and with which classifier, only an"
        " attack on the whole pair says."
    )
    return limits


def _is_ours(stage: Mapping[str, Any]) -> bool:
    """Whether `purify train` wrote this: files may hold any provenance."""
    config = stage.get("config")
    return (
        isinstance(config, Mapping)
        and {"architecture", "network", "training"} <= config.keys()
        and {"steps", "seed", "hours", "data"} <= stage.keys()
    )


def _stages(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trainings that made the weights, the first one first; what is not ours is one of unknown content."""
    earlier = provenance.get("init") if _is_ours(provenance) else None
    return [
        *(_stages(earlier) if isinstance(earlier, Mapping) and earlier else []),
        *([provenance] if provenance else []),
    ]


def _training(provenance: Mapping[str, Any]) -> list[str]:
    stages = _stages(provenance)
    if not stages:
        return ["Nothing is known of its training: the file does not say.", ""]
    lines: list[str] = []
    before: Mapping[str, Any] = {}
    for number, stage in enumerate(stages, 1):
        if not _is_ours(stage):
            lines += [*(f"- {key}: {value}" for key, value in stage.items()), ""]
            continue
        lines += _stage(number, stage, before)
        before = stage["config"]
    return lines


def _stage(number: int, stage: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """A training by `purify train`: its configuration, or in what it differs from the one before."""
    config = stage["config"]
    told = {
        key: value
        for key, value in config.items()
        if key not in ("task", "name", "data", "checkpoint_minutes", "notes") and value is not None
    }
    told = {key: value for key, value in told.items() if key not in before or value != before[key]}
    text = yaml.safe_dump(told, sort_keys=False, default_flow_style=None, width=120).rstrip().splitlines()
    device = stage.get("environment", {}).get("device", "an unknown device")
    done = (
        f"{stage['steps']:,} steps of {config['training'].get('batch_size')} images, seed {stage['seed']},"
        f" {stage['hours']} hours by the clock, on {device}"
    )
    so_far = "; as before but for" if before else ", with"
    return [
        f"{number}. `purify train` on `{stage['data']}`: {done}{so_far}",
        "",
        "   ```yaml",
        *(f"   {line}" for line in text),
        "   ```",
        "",
    ]
