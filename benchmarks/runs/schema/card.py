"""What `purify models card` and `purify train` write."""

from typing import Any, Literal

from pydantic import Field

from benchmarks.runs.schema.record import Record


class DenoisingRow(Record):
    """Denoising errors at one noise level.

    Attributes:
        t: time of the linear VP process; `own_t` the model's own time of as much noise.
        noise_level: sigma / alpha, on images in [-1, 1].
        mse: of E[x0 | x_t] per pixel, images in [-1, 1].
        linear_mse: of a linear denoiser, where there is one; `ratio` of the two.
    """

    t: float
    own_t: float
    noise_level: float
    mse: float
    linear_mse: float | None = None
    ratio: float | None = None


class LinearFit(Record):
    """What the linear denoiser was fitted to."""

    data: str | None
    images: int


class CardNumbers(Record):
    """card.json.

    Attributes:
        schema_version: 1, under the key `schema`.
        name: of the model.
        weights: SHA-256 of weights and settings.
        parameters: how many numbers; `file_bytes` of their file, where there is one.
        test_data: name of the data set; `test_images` of it were measured.
        linear_denoiser: what the comparison was fitted to, where there is one.
        denoising: a row for each noise level.
        settings: of the score model; `provenance` what its file says of its origin.
        notes: what else a user should know.
        environment: versions and hardware.
    """

    schema_version: Literal[1] = Field(alias="schema")
    name: str
    weights: str
    parameters: int
    file_bytes: int | None = None
    test_data: str
    test_images: int
    linear_denoiser: LinearFit | None = None
    denoising: tuple[DenoisingRow, ...]
    settings: dict[str, Any]
    provenance: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    environment: dict[str, Any] = {}


class TrainingLine(Record):
    """A line of log.jsonl: the mean loss since the line before."""

    step: int
    loss: float
    images_per_second: float
    learning_rate: float
