"""What `purify certify` writes."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from benchmarks.evaluation.statistics import Estimate
from benchmarks.runs.schema.record import Record


class CertifyResult(Record):
    """The certificates at one noise level.

    Attributes:
        sigma: of the noise, on images in [0, 1]; `t` the score network's time of as much noise.
        certified: L2 radius -> share of images with the true class certified there.
        average_radius: mean over images, 0 where the true class is not certified.
        largest_radius: what so many draws can certify at all.
        abstained: images without a certificate.
        accuracy: of the smoothed classifier, without a radius.
        single: of one noisy draw, of which no certificate speaks.
        undefined: draws with NaN among their logits.
        seconds: wall time; `network_evaluations`: images through the score network.
    """

    sigma: float
    t: float | None = None
    certified: dict[str, Estimate]
    average_radius: float
    largest_radius: float
    abstained: int
    accuracy: Estimate
    single: Estimate
    undefined: int = 0
    seconds: float
    network_evaluations: int


class CertifySummary(Record):
    """summary.json of `purify certify`.

    Attributes:
        schema_version: "certify 1", under the key `schema`: no row of it is one of `purify bench`.
        claim: what a certificate says, in words.
        seed: of all draws.
        images: how many.
        n0: draws that choose a class; `n` draws that estimate its probability; `alpha` the probability of a wrong
            certificate.
        complete: whether all noise levels are here.
        weights: see `Summary`, as `config`, `environment` and `peak_memory`.
        results: one for each noise level.
    """

    VERSION: ClassVar[int | str] = "certify 1"

    schema_version: Literal["certify 1"] = Field(alias="schema")
    claim: str
    seed: int
    images: int
    n0: int
    n: int
    alpha: float
    complete: bool
    weights: dict[str, str] = {}
    config: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    peak_memory: dict[str, int] = {}
    results: tuple[CertifyResult, ...]


class CertifyImageLine(Record):
    """A line of images.jsonl of `purify certify`: one image at one noise level.

    Attributes:
        image: position in the data set; `label` its class.
        sigma: of the noise.
        prediction: the certified class, None where there is none.
        radius: certified, L2 on images in [0, 1]; 0 where there is none.
        lower_bound: of the class's probability.
        selection: class -> how many of the `n0` draws gave it; `counts` the same of the `n` draws.
    """

    image: int
    label: int
    sigma: float
    prediction: int | None
    radius: float
    lower_bound: float
    selection: dict[int, int]
    counts: dict[int, int]


class CountsBatch(Record):
    """A file of `batches/` of `purify certify`: the counts of a few images.

    Attributes:
        identity: SHA-256 of all that the counts depend on.
        selection: (images, classes); `counts` likewise, see `CertifyImageLine`.
        seconds: wall time; `network_evaluations`: images through the score network.
    """

    identity: str
    selection: list[list[int]]
    counts: list[list[int]]
    seconds: float
    network_evaluations: int
