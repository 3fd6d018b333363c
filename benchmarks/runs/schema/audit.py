"""What `purify audit` writes, and what `purify speed` measures."""

from typing import Any, Literal

from pydantic import Field

from benchmarks.runs.schema.record import Record


class ErrorSpread(Record):
    """A relative error by image."""

    median: float
    max: float


class CosineSpread(Record):
    """A cosine by image."""

    median: float
    min: float
    max: float


class GradientError(Record):
    """How far a gradient is from the true one.

    Attributes:
        relative_error: norm of the difference over the norm of the truth, over all images; `relative_error_images` by
            image.
        cosine: by image.
        sign_agreement: share of pixels whose sign is right, which is what an Linf step uses.
        zero: share of images whose gradient is exactly zero; `not_finite` share of images with NaN or infinity.
    """

    relative_error: float
    relative_error_images: ErrorSpread
    cosine: CosineSpread
    sign_agreement: float
    zero: float
    not_finite: float


class _Setting(Record):
    mode: str
    precision: str
    t_star: float
    steps: int
    grid: str


class GradientRow(GradientError, _Setting):  # fields of the last base come first
    """A gradient mode at one setting.

    Attributes:
        mode: in words; `precision` "float32" or "float64".
        t_star: diffused to; `steps` back on `grid`.
        value_error: largest error of a purified pixel.
        value_as_backprop: whether values equal those of `backprop` bit for bit, None where they need not;
            `gradient_as_backprop` likewise.
    """

    value_error: float
    value_as_backprop: bool | None = None
    gradient_as_backprop: bool | None = None


class FiniteDifferences(Record):
    """Directional derivatives in float64: the largest error of the `exact` gradient and of the `reference`, over the
    norm, in so many `directions` with this `step`.
    """

    directions: int
    step: float
    exact: float
    reference: float


class Timing(Record):
    """Parts timed in turn.

    Attributes:
        seconds: part -> median over rounds.
        ratio: part -> median of its time over that of the first part in the same round.
    """

    seconds: dict[str, float]
    ratio: dict[str, float]


class _ModeSizes(Record):
    images: int
    steps: int
    rounds: int


class ModeTimes(Timing, _ModeSizes):  # fields of the last base come first
    """Value and gradient in every mode, on so many images, steps and rounds."""


class _SpeedSizes(Record):
    batch: int
    steps: int
    rounds: int


class Speed(Timing, _SpeedSizes):
    """A purification and its parts, and under `eot` an attack's gradient over several draws."""

    eot: Timing


class MemoryRow(Record):
    """Peak memory of value and gradient in one mode.

    Attributes:
        mode: in words; `images` at once.
        steps: the two numbers of steps; `peak_mib` at each, or why it could not be measured.
        mib_per_step: growth from the one to the other.
        state_mib: of one image-sized state.
    """

    mode: str
    images: int
    steps: tuple[int, int]
    peak_mib: tuple[float | str, float | str]
    mib_per_step: float | None
    state_mib: float


class ConventionRow(Record):
    """What one of DiffPure's conventions changes: the accuracy, the mean pixel, and the share of predictions."""

    convention: str
    t_star: float
    steps: int
    images: int
    accuracy: float
    mean_change: float
    predictions_changed: float


class Verdict(Record):
    """Whether a mode may be used to attack, in a sentence; `passed` is None for modes that promise nothing."""

    mode: str
    precision: str
    steps: int
    passed: bool | None
    text: str


class AuditResult(Record):
    """audit.json, which is written part by part.

    Attributes:
        schema_version: 1, under the key `schema`.
        config: see `Summary`, as `weights` and `environment`.
        images: that gradients are compared on.
        sweep: gradient modes over t* and steps.
        gradients: gradient modes at the configured setting.
        verdicts: what follows.
        finite_differences: an independent check; `time`, `memory` and `conventions`: see their models.
    """

    schema_version: Literal[1] = Field(alias="schema")
    config: dict[str, Any] = {}
    weights: dict[str, str] = {}
    environment: dict[str, Any] = {}
    images: int
    sweep: tuple[GradientRow, ...] = ()
    gradients: tuple[GradientRow, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    finite_differences: FiniteDifferences | None = None
    time: ModeTimes | None = None
    memory: tuple[MemoryRow, ...] = ()
    conventions: tuple[ConventionRow, ...] = ()
