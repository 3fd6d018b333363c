"""Model cards: what a score model is, what it was trained on, how well it denoises, and what it makes, as a folder of text, numbers and pictures."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks import datasets
from benchmarks.config import ConfigError
from benchmarks.denoising import LINEAR_LIMIT, LinearDenoiser, denoising_errors, own_times
from benchmarks.runs import environment, fingerprint_model, full_precision, write_text
from purify.schedules import noise_to_signal
from purify.score import ScoreModel
from purify.zoo import settings_of

SCHEMA = 1
TEXT, NUMBERS = "README.md", "card.json"
CURVE, DENOISED, PURIFIED, SAMPLES = "denoising.png", "denoised.png", "purified.png", "samples.png"
TIMES = (0.01, 0.02, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9)
"""Noise levels of the table and the curve, as times of `LinearVP()`."""

_SHOWN = (0.05, 0.1, 0.2, 0.3)  # of the pictures
_PICTURES = 8
_NOTHING_LEFT = 50.0  # noise per signal at t_max from which the reverse process makes images from pure noise


class Card:
    """A checked card, ready to be made.

    Args:
        name: of the model, the card's title.
        model: on the device where it is to run.
        test_set: images that it did not see; the first 1,000 are measured, eight shown.
        train_set: what it was trained on, to fit the linear denoiser that its errors are compared with; None for no comparison.
        test_name: how the card calls `test_set`.
        train_name: how the card calls `train_set`.

    Raises:
        ConfigError, ValueError: data that the model does not take, or images too large for a linear denoiser.
    """

    def __init__(
        self, name: str, model: ScoreModel, test_set: datasets.Dataset, train_set: datasets.Dataset | None, test_name: str, train_name: str | None = None
    ):
        self.name, self.model, self.test_set, self.train_set = name, model, test_set, train_set
        self.test_name, self.train_name = test_name, train_name
        model.check_class()
        for role, found in (("test", test_set), ("train", train_set)):
            shape = None if found is None else tuple(found.images.shape[1:])
            if shape is not None and model.image_shape is not None and shape != tuple(model.image_shape):
                raise ConfigError(f"{role}: images of shape {shape}, {name} was trained on {tuple(model.image_shape)}")
        if train_set is not None and math.prod(train_set.images.shape[1:]) > LINEAR_LIMIT:
            raise ConfigError(f"train: the linear denoiser is for images of at most {LINEAR_LIMIT:,} numbers; leave the training images out")

    @property
    def makes_samples(self) -> bool:
        """Whether the model was trained up to where nothing of an image is left."""
        low, high = self.model.value_range
        return self.model.image_shape is not None and noise_to_signal(self.model.schedule, self.model.t_max) * 2 / (high - low) >= _NOTHING_LEFT

    def write(self, out: Path, file: Path | None = None, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Measures, and writes README.md, card.json and pictures into the folder `out`; returns the contents of card.json.

        Args:
            out: an existing folder.
            file: the model's weight file, for its size and kind of numbers.
            say: told what is being done.
        """
        device = next(self.model.parameters()).device
        times = own_times(self.model, TIMES)
        with full_precision(device):
            say(f"measuring {self.name} at {len(times)} noise levels")
            errors, linear = denoising_errors(self.model, self.test_set, times), None
            if self.train_set is not None:
                say("fitting the linear denoiser")
                linear = LinearDenoiser.fit(self.train_set, self.model.value_range).errors(self.model, self.test_set, times)
            say("drawing pictures")
            self._draw(out, errors, linear)
        numbers = {
            "schema": SCHEMA,
            "name": self.name,
            "weights": fingerprint_model(self.model, json.dumps(settings_of(self.model))),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "file_bytes": None if file is None else file.stat().st_size,
            "test_data": self.test_name,
            "test_images": min(1000, len(self.test_set)),
            "linear_denoiser_from": self.train_name if linear else None,
            "denoising": [
                {"t": float(t), "mse": errors[t]} | ({"linear_mse": linear[t], "ratio": round(errors[t] / linear[t], 4)} if linear else {}) for t in errors
            ],
            "settings": settings_of(self.model),
            "provenance": self.model.metadata,
            "environment": environment(device),
        }
        write_text(out / NUMBERS, json.dumps(numbers, indent=2) + "\n")
        write_text(out / TEXT, "\n".join(self._text(numbers)) + "\n")
        return numbers

    def _draw(self, out: Path, errors: Mapping[str, float], linear: Mapping[str, float] | None) -> None:
        from benchmarks import card_figures  # matplotlib is slow to import

        images = datasets.as_floats(self.test_set.images[:_PICTURES])
        shown = own_times(self.model, _SHOWN)
        card_figures.save_denoising_curve(errors, linear, out / CURVE)
        card_figures.save_denoised_images(self.model, images, shown, out / DENOISED)
        card_figures.save_purified_images(self.model, images, shown, out / PURIFIED)
        if self.makes_samples:
            card_figures.save_samples(self.model, out / SAMPLES)

    def _text(self, numbers: dict[str, Any]) -> list[str]:
        provenance = self.model.metadata
        return [
            f"# {self.name}",
            "",
            *self._facts(numbers),
            "",
            "## Training",
            "",
            *_training(provenance),
            "## Denoising error",
            "",
            *self._errors(numbers),
            "",
            f"![denoising error against the noise level]({CURVE})",
            "",
            "## Pictures",
            "",
            f"Noisy images, and the network's estimate E[x0 | x_t] (one evaluation each, images of `{self.test_name}`):",
            "",
            f"![clean, noisy, denoised]({DENOISED})",
            "",
            "Purified: diffused to t\\* and solved back in 20 evaluations of SDE-DPM-Solver++, two draws each:",
            "",
            f"![clean and purified]({PURIFIED})",
            "",
            *self._samples(),
            "",
            "## Limits",
            "",
            *(f"- {limit}" for limit in self._limits(provenance)),
        ]

    def _facts(self, numbers: dict[str, Any]) -> list[str]:
        model, config = self.model, self.model.metadata.get("config", {})
        shape = "x".join(map(str, model.image_shape)) if model.image_shape else "any size"
        low, high = model.value_range
        network = f"`{config['architecture']}`, `{config['network']}`" if config else f"`{type(model.network).__name__}`"
        facts = {
            "images": f"{shape}, in [{low:g}, {high:g}]",
            "process": f"`{model.schedule}`, trained up to t = {model.t_max:g}",
            "network": f"{network}: {numbers['parameters'] / 1e6:.1f} M parameters; it predicts {model.prediction}",
            "weights": f"fingerprint `{numbers['weights'][:16]}`" + (f", file of {numbers['file_bytes'] / 1e6:.1f} MB" if numbers["file_bytes"] else ""),
            "measured with": f"torch {numbers['environment']['torch']} on {numbers['environment']['device']}",
        }
        return ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in facts.items())]

    def _errors(self, numbers: dict[str, Any]) -> list[str]:
        low, high = self.model.value_range
        compared = numbers["linear_denoiser_from"] is not None
        what = (
            f"Mean squared error of E[x0 | x_t] per pixel, images in [-1, 1], on the first {numbers['test_images']:,} of `{self.test_name}`, one draw of "
            "noise each. Noise levels are given as times t of the linear VP process; sigma is the noise on images in [-1, 1]."
        )
        if compared:
            what += f" Beside it the best linear (Wiener) denoiser, fitted to `{self.train_name}`."
        head = ["t", "sigma", "network", *(("linear", "ratio") if compared else ())]
        lines = [what, "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        times = own_times(self.model, TIMES)
        for row in numbers["denoising"]:
            sigma = noise_to_signal(self.model.schedule, times[str(row["t"])]) * 2 / (high - low)
            cells = [f"{row['t']:g}", f"{sigma:.3f}", f"{row['mse']:.5f}", *((f"{row['linear_mse']:.5f}", f"{row['ratio']:.3f}") if compared else ())]
            lines.append("| " + " | ".join(cells) + " |")
        return lines

    def _samples(self) -> list[str]:
        if self.makes_samples:
            return ["Samples from pure noise, 200 Euler steps:", "", f"![samples]({SAMPLES})"]
        return [
            "No samples from pure noise: the network was not trained to where nothing of an image is left. The draws at the largest t\\* show what it makes up."
        ]

    def _limits(self, provenance: Mapping[str, Any]) -> list[str]:
        limits = [note for stage in _stages(provenance) for note in stage.get("config", {}).get("notes", [])]
        if not self.makes_samples:
            limits.append(f"Trained up to t = {self.model.t_max:g}: purifiers that diffuse further are refused, and it does not make images from pure noise.")
        limits.append("A small denoising error does not make a defence: how robust it is, and with which classifier, only an attack on the whole pair says.")
        return list(dict.fromkeys(limits))


def _stages(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trainings that made the weights, the first one first."""
    earlier = provenance.get("init")
    return [*(_stages(earlier) if earlier else []), *([provenance] if provenance else [])]


def _training(provenance: Mapping[str, Any]) -> list[str]:
    stages = _stages(provenance)
    if not stages:
        return ["Nothing is known of its training: the file does not say.", ""]
    return [line for number, stage in enumerate(stages, 1) for line in _stage(number, stage)]


def _stage(number: int, stage: Mapping[str, Any]) -> list[str]:
    """A training by `purify train`, or what else a file says of its origin."""
    config = stage.get("config")
    if not isinstance(config, Mapping) or "steps" not in stage:
        return [*(f"- {key}: {value}" for key, value in stage.items()), ""]
    batch, device = config["training"]["batch_size"], stage["environment"]["device"]
    kept = {key: value for key, value in config.items() if key not in ("task", "name", "data", "init", "checkpoint_minutes", "notes")}
    text = yaml.safe_dump(kept, sort_keys=False, default_flow_style=None, width=120).rstrip().splitlines()
    done = f"{stage['steps']:,} steps of {batch} images, seed {stage['seed']}, {stage['hours']} hours by the clock, on {device}"
    return [f"{number}. `purify train` on `{stage['data']}`: {done}.", "", "   ```yaml", *(f"   {line}" for line in text), "   ```", ""]
