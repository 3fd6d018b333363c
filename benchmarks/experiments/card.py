"""Model cards: what a score model is, what it was trained on, how well it denoises, and what it makes, as a folder of
text, numbers and pictures.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import datasets
from benchmarks.config.sections import ConfigError
from benchmarks.evaluation.denoising import LARGEST, LinearDenoiser, denoising_errors, measured_images, own_times
from benchmarks.evaluation.precision import full_precision
from benchmarks.reports.card_text import CURVE, DENOISED, PURIFIED, SAMPLES, card_text
from benchmarks.runs.environment import environment
from benchmarks.runs.fingerprints import fingerprint_model
from benchmarks.runs.folder import write_text
from benchmarks.runs.progress import progress_bar
from benchmarks.runs.schema import CardNumbers, write
from benchmarks.runs.schema.card import DenoisingRow, LinearFit
from purify.score.model import ScoreModel
from purify.zoo import settings_of

TEXT, NUMBERS = "README.md", "card.json"
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

    def write(self, out: Path, file: Path | None = None, say: Callable[[str], None] = lambda _: None) -> CardNumbers:
        """Measures, and writes README.md, card.json and pictures into the folder `out`; returns the contents of
        card.json.

        Args:
            out: an existing folder.
            file: the model's weight file, for its size.
            say: told what is being done.
        """
        device = next(self.model.parameters()).device
        with full_precision(device):
            numbers = self._numbers(file, say)
            write(out / NUMBERS, numbers)
            plenty = self.train_set is None or LinearDenoiser.has_plenty(self.train_set)
            write_text(out / TEXT, "\n".join(card_text(numbers, self.model, self.makes_samples, plenty)) + "\n")
            say("drawing pictures")
            self._draw(out, numbers.denoising)
        return numbers

    def _numbers(self, file: Path | None, say: Callable[[str], None]) -> CardNumbers:
        """The contents of card.json."""
        return CardNumbers(
            schema_version=1,
            name=self.name,
            weights=fingerprint_model(self.model, json.dumps(self.settings)),
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            file_bytes=None if file is None else file.stat().st_size,
            test_data=self.test_name,
            test_images=measured_images(self.test_set),
            linear_denoiser=(
                None if self.train_set is None else LinearFit(data=self.train_name, images=len(self.train_set))
            ),
            denoising=self._measure(say),
            settings=self.settings,
            provenance=self.model.metadata,
            notes=tuple(self.notes),
            environment=environment(next(self.model.parameters()).device),
        )

    def _measure(self, say: Callable[[str], None]) -> tuple[DenoisingRow, ...]:
        """A row for each noise level."""
        times = own_times(self.model, TIMES)
        with progress_bar(f"measuring {self.name}", len(times)) as update:
            errors = denoising_errors(self.model, self.test_set, times, update)
        rows = [
            DenoisingRow(t=t, own_t=own, noise_level=self.model.noise_level(own), mse=errors[t])
            for t, own in times.items()
        ]
        if self.train_set is None:
            return tuple(rows)
        say(f"fitting the {_LINEAR}")
        linear = LinearDenoiser.fit(self.train_set, self.model.value_range).errors(self.model, self.test_set, times)
        return tuple(
            row.model_copy(update={"linear_mse": linear[row.t], "ratio": round(row.mse / linear[row.t], 4)})
            for row in rows
        )

    def _draw(self, out: Path, rows: Sequence[DenoisingRow]) -> None:
        from benchmarks.reports import card_figures  # matplotlib is slow to import

        images = datasets.as_floats(self.test_set.images[:_PICTURES])
        shown = own_times(self.model, _SHOWN)
        card_figures.save_denoising_curve(rows, out / CURVE)
        card_figures.save_denoised_images(self.model, images, shown, out / DENOISED)
        card_figures.save_purified_images(self.model, images, shown, out / PURIFIED)
        if self.makes_samples:
            card_figures.save_samples(self.model, self.shape, out / SAMPLES)
