"""Model cards: what a score model is, what it was trained on, how well it denoises, and what it makes, as a folder of
text, numbers and pictures.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import datasets
from benchmarks.config.sections import ConfigError
from benchmarks.evaluation.denoising import LARGEST, LinearDenoiser, denoising_errors, measured_images, own_times
from benchmarks.evaluation.precision import full_precision
from benchmarks.runs.environment import environment
from benchmarks.runs.fingerprints import fingerprint_model
from benchmarks.runs.folder import write_text
from benchmarks.runs.progress import progress_bar
from purify.score.model import ScoreModel
from purify.zoo import settings_of

SCHEMA = 1
TEXT, NUMBERS = "README.md", "card.json"
CURVE, DENOISED, PURIFIED, SAMPLES = "denoising.png", "denoised.png", "purified.png", "samples.png"
TIMES = (0.01, 0.02, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9)
"""Noise levels of the table and the curve, as times of `LinearVP()`."""

_SHOWN = (0.05, 0.1, 0.2, 0.3)  # of the pictures
_PICTURES = 8
_NOTHING_LEFT = 50.0  # noise level at t_max from which the reverse process makes images from pure noise
_LINEAR = "linear denoiser"


class Card:
    """What is needed to write a score model's card; the arguments are checked when it is built.

    Args:
        name: of the model, the card's title.
        model: on the device where it is to run.
        test_set: images that it did not see; the first 1,000 are measured, eight shown.
        train_set: what it was trained on, to fit the linear denoiser that its errors are compared with; None for no
            comparison.
        test_name: how the card calls `test_set`.
        train_name: how the card calls `train_set`.
        notes: what else a user should know, beside the notes that the file holds.

    Raises:
        ConfigError, ValueError: data that the model does not take, images too large for a linear denoiser, a
            class-conditional model without a class, or a process that no file can describe.
    """

    def __init__(
        self,
        name: str,
        model: ScoreModel,
        test_set: datasets.Dataset,
        train_set: datasets.Dataset | None,
        test_name: str,
        train_name: str | None = None,
        notes: Sequence[str] = (),
    ):
        self.name, self.model, self.test_set, self.train_set = name, model, test_set, train_set
        self.test_name, self.train_name, self.notes = test_name, train_name, notes
        self.settings = settings_of(model)
        self.shape = tuple(test_set.images.shape[1:])
        model.check_class()
        try:
            model.check_images(datasets.as_floats(test_set.images[:1]))
        except ValueError as error:
            raise ConfigError(f"test data {test_name!r} does not fit {name}: {error}") from error
        if train_set is not None:
            if tuple(train_set.images.shape[1:]) != self.shape:
                raise ConfigError(
                    f"training data {train_name!r} has images of shape {tuple(train_set.images.shape[1:])}, the test"
                    f" data {self.shape}"
                )
            if not LinearDenoiser.can_fit(train_set):
                raise ConfigError(
                    f"training data {train_name!r}: the {_LINEAR} is for images of at most {LARGEST:,} numbers; leave"
                    " the training data out"
                )

    @property
    def makes_samples(self) -> bool:
        """Whether the model was trained up to where nothing of an image is left."""
        return self.model.noise_level(self.model.t_max) >= _NOTHING_LEFT

    def write(self, out: Path, file: Path | None = None, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Measures, and writes README.md, card.json and pictures into the folder `out`; returns the contents of
        card.json.

        Args:
            out: an existing folder.
            file: the model's weight file, for its size.
            say: told what is being done.
        """
        device = next(self.model.parameters()).device
        with full_precision(device):
            rows = self._measure(say)
            numbers = {
                "schema": SCHEMA,
                "name": self.name,
                "weights": fingerprint_model(self.model, json.dumps(self.settings)),
                "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
                "file_bytes": None if file is None else file.stat().st_size,
                "test_data": self.test_name,
                "test_images": measured_images(self.test_set),
                "linear_denoiser": (
                    None if self.train_set is None else {"data": self.train_name, "images": len(self.train_set)}
                ),
                "denoising": rows,
                "settings": self.settings,
                "provenance": self.model.metadata,
                "notes": list(self.notes),
                "environment": environment(device),
            }
            write_text(out / NUMBERS, json.dumps(numbers, indent=2) + "\n")
            write_text(out / TEXT, "\n".join(self._text(numbers)) + "\n")
            say("drawing pictures")
            self._draw(out, rows)
        return numbers

    def _measure(self, say: Callable[[str], None]) -> list[dict[str, float]]:
        """A row for each noise level: `t` of the linear VP process, the model's own time, sigma / alpha on images in
        [-1, 1], and errors.
        """
        times = own_times(self.model, TIMES)
        with progress_bar(f"measuring {self.name}", len(times)) as update:
            errors = denoising_errors(self.model, self.test_set, times, update)
        rows = [
            {"t": t, "own_t": own, "noise_level": self.model.noise_level(own), "mse": errors[t]}
            for t, own in times.items()
        ]
        if self.train_set is not None:
            say(f"fitting the {_LINEAR}")
            linear = LinearDenoiser.fit(self.train_set, self.model.value_range).errors(self.model, self.test_set, times)
            rows = [
                row | {"linear_mse": linear[row["t"]], "ratio": round(row["mse"] / linear[row["t"]], 4)} for row in rows
            ]
        return rows

    def _draw(self, out: Path, rows: list[dict[str, float]]) -> None:
        from benchmarks.reports import card_figures  # matplotlib is slow to import

        images = datasets.as_floats(self.test_set.images[:_PICTURES])
        shown = own_times(self.model, _SHOWN)
        card_figures.save_denoising_curve(rows, out / CURVE)
        card_figures.save_denoised_images(self.model, images, shown, out / DENOISED)
        card_figures.save_purified_images(self.model, images, shown, out / PURIFIED)
        if self.makes_samples:
            card_figures.save_samples(self.model, self.shape, out / SAMPLES)

    def _text(self, numbers: dict[str, Any]) -> list[str]:
        return [
            f"# {self.name}",
            "",
            *self._facts(numbers),
            "",
            "## Training",
            "",
            *_training(self.model.metadata),
            "## Denoising error",
            "",
            *self._errors(numbers),
            "",
            f"![denoising error against the noise level]({CURVE})",
            "",
            "## Pictures",
            "",
            (
                "Noisy images, and the network's estimate E[x0 | x_t] (one evaluation each, images of"
                f" `{self.test_name}`):"
            ),
            "",
            f"![clean, noisy, denoised]({DENOISED})",
            "",
            "Purified: diffused to t\\* and solved back in 20 evaluations of SDE-DPM-Solver++, two draws each:",
            "",
            f"![clean and purified]({PURIFIED})",
            "",
            *self._samples(),
            "",
            "## Notes and limits",
            "",
            *(f"- {note}" for note in (*self.notes, *self._limits())),
        ]

    def _facts(self, numbers: dict[str, Any]) -> list[str]:
        model, provenance = self.model, self.model.metadata
        shape = "x".join(map(str, model.image_shape)) if model.image_shape else "any size"
        low, high = model.value_range
        config = provenance["config"] if _is_ours(provenance) else {}
        network = (
            f"`{config['architecture']}`, `{config['network']}`" if config else f"`{type(model.network).__name__}`"
        )
        bits = round(8 * (numbers["file_bytes"] or 0) / numbers["parameters"])
        size = (
            f", a file of {numbers['file_bytes'] / 1e6:.1f} MB ({bits} bits a number)" if numbers["file_bytes"] else ""
        )
        facts = {
            "images": f"{shape}, in [{low:g}, {high:g}]",
            "process": f"`{model.schedule}`, trained up to its time {model.t_max:g}",
            "network": f"{network}: {numbers['parameters'] / 1e6:.1f} M parameters; it predicts {model.prediction}",
            "weights": f"fingerprint `{numbers['weights'][:16]}`{size}",
            "measured with": f"torch {numbers['environment']['torch']} on {numbers['environment']['device']}",
        }
        return ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in facts.items())]

    def _errors(self, numbers: dict[str, Any]) -> list[str]:
        what = (
            f"Mean squared error of E[x0 | x_t] per pixel, images in [-1, 1], on the first {numbers['test_images']:,}"
            f" of `{self.test_name}`, one draw of noise each. Noise levels are given as times t of the linear VP"
            " process, and as sigma/alpha, the noise on images in [-1, 1]."
        )
        names = ["mse"]
        if self.train_set is not None:
            names += ["linear_mse", "ratio"]
            what += (
                f" Beside it a linear (Wiener) denoiser, fitted to the {len(self.train_set):,} images of"
                f" `{self.train_name}`."
            )
            if not LinearDenoiser.has_plenty(self.train_set):
                what += (
                    " These are few for so many pixels: with more, it would do better, and the ratio would be larger."
                )
        head = ["t", "sigma/alpha", "network", "linear", "ratio"][: 2 + len(names)]
        digits = {"ratio": 3}
        cells = (
            " | ".join(
                (
                    f"| {row['t']:g}",
                    f"{row['noise_level']:.3f}",
                    *(f"{row[name]:.{digits.get(name, 5)}f}" for name in names),
                )
            )
            + " |"
            for row in numbers["denoising"]
        )
        return [what, "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|", *cells]

    def _samples(self) -> list[str]:
        if self.makes_samples:
            return ["Samples from pure noise, 100 evaluations of SDE-DPM-Solver++:", "", f"![samples]({SAMPLES})"]
        return [
            "No samples from pure noise: at the largest t that it was trained on, images are not yet noise. The draws"
            " at the largest t\\* show what it adds."
        ]

    def _limits(self) -> list[str]:
        limits = [
            note
            for stage in _stages(self.model.metadata)
            if _is_ours(stage)
            for note in stage["config"].get("notes", [])
        ]
        if self.model.t_max < self.model.schedule.t_max:
            limits.append(
                f"Trained up to time {self.model.t_max:g} of its process: purifiers that diffuse further are refused."
            )
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
    lines, before = [], {}
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
