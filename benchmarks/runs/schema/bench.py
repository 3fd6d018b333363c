"""What `purify bench` writes."""

from typing import Any, Literal

from pydantic import Field

from attacks.cost import Cost
from benchmarks.evaluation.signs import Flag
from benchmarks.evaluation.statistics import Estimate
from benchmarks.runs.schema.record import Difference, Record


class Budget(Record):
    """budget.json: what `--budget` made of a run.

    Attributes:
        seconds: the time given.
        estimated_seconds: what the reduced run was thought to take.
        reduced: key of the configuration -> (asked, given).
    """

    seconds: float
    estimated_seconds: float
    reduced: dict[str, tuple[Any, Any]]


class Seeds(Record):
    """What the draws of a row come from; the attack's are None on clean images."""

    evaluation: int
    attack: int | None = None
    attack_draw: int | None = None


class Judged(Record):
    """The accuracies of one model under one attack.

    Attributes:
        model: "undefended" or "defended".
        attack: its name, "none" for clean images.
        threat: in words, "none" for clean images.
        single: mean over draws of the accuracy of one draw.
        worst_of: number of draws -> accuracy where all of them must be right.
        majority: number of draws -> accuracy of their vote; None where the noise is fixed.
    """

    model: str
    attack: str
    threat: str
    single: Estimate
    worst_of: dict[int, Estimate]
    majority: dict[int, Estimate] | None = None


class Result(Judged):
    """A row of results.

    Attributes:
        own_verdict: the accuracy that the attack itself claims, of attacks that judge.
        reached: share of images that are given the class that a targeted attack sought.
        undefined: draws without a finite logit.
        seconds: wall time of the row.
        network_evaluations: images through the score network, in all.
        attack_cost: images that the attack sent through the attacked model.
        gradient: mode in which the purifier was differentiated, None where it was not.
        scheme: of the purifier, as `t_star`, `steps` and `solver`; None without one.
        purifier: its whole section of the configuration.
        iterations: of the attack, counted in `unit`; `eot` draws a gradient; `restarts`; its `loss`, if it has one.
        through: what the attack differentiates: "deployed", "classifier" or "surrogate".
        surrogate: keys of the purifier's section in which the surrogate differs.
        target: what a targeted attack seeks.
        settings: all of the attack's own.
        version: of the official AutoAttack, as `attacks`, `batch_size` and `draws_from`.
        randomness: "fresh" or "fixed".
        warnings: that were given meanwhile.
        seeds: that make the row again.
    """

    own_verdict: Estimate | None = None
    reached: Estimate | None = None
    undefined: int = 0
    seconds: float
    network_evaluations: int
    attack_cost: Cost | None = None
    gradient: str | None = None
    scheme: str | None = None
    t_star: float | tuple[float, ...] | None = None
    steps: int | tuple[int, ...] | None = None
    solver: str | dict[str, Any] | None = None
    purifier: dict[str, Any] | None = None
    iterations: int | None = None
    unit: str = "steps"
    eot: int | None = None
    restarts: int | None = None
    loss: str | None = None
    through: str = "deployed"
    surrogate: dict[str, Any] | None = None
    target: int | str | None = None
    settings: dict[str, Any] = {}
    version: str | None = None
    attacks: tuple[str, ...] | None = None
    batch_size: int | None = None
    draws_from: str | None = None
    randomness: str = "fresh"
    warnings: tuple[str, ...] = ()
    seeds: Seeds


class Probe(Result):
    """A row that `--diagnose` adds, on the first `images` images."""

    images: int


class _Compared(Record):
    model: str
    attack: str
    reference: str
    through: str = "deployed"
    target: int | str | None = None


class Paired(Difference, _Compared):  # fields of the last base come first
    """An attack against the first one of the same threat on the same model: the difference of single-draw accuracy.

    Attributes:
        model: attacked.
        attack: its name; `reference` the name of the first one.
        through: see `Result`; `target` likewise.
    """


class Summary(Record):
    """summary.json of `purify bench`.

    Attributes:
        schema_version: 1, under the key `schema`.
        seed: of all draws.
        images: how many.
        draws: of the verdict, for each image.
        complete: whether all rows are here.
        weights: name of a model -> SHA-256 of its weights and settings.
        config: the whole configuration.
        environment: versions and hardware.
        peak_memory: in MiB.
        results: the rows.
        paired: attacks against the first one of their threat.
        budget: what a time limit reduced, if there was one.
        diagnostics: rows that were measured to find signs of a broken evaluation.
        looked_for: sign -> the most images that it was looked for on.
        flags: signs that were found.
    """

    schema_version: Literal[1] = Field(alias="schema")
    seed: int
    images: int
    draws: int
    complete: bool
    weights: dict[str, str] = {}
    config: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    peak_memory: dict[str, int] = {}
    results: tuple[Result, ...]
    paired: tuple[Paired, ...] = ()
    budget: Budget | None = None
    diagnostics: tuple[Probe, ...] = ()
    looked_for: dict[str, int] = {}
    flags: tuple[Flag, ...] = ()

    @property
    def is_reduced(self) -> bool:
        """Whether a time limit took something from the run."""
        return self.budget is not None and bool(self.budget.reduced)


class ImageLine(Record):
    """A line of images.jsonl: one image under one row.

    Attributes:
        image: position in the data set; `label` its class.
        model: see `Result`; `attack` likewise.
        predictions: the label of every draw, -1 where there was none.
        distance: of the adversarial image from the clean one, in the threat's own measure.
    """

    image: int
    label: int
    model: str
    attack: str
    predictions: tuple[int, ...]
    distance: float


class BatchFacts(Record):
    """What a batch's file says beside its tensors, under `facts` of its metadata.

    Attributes:
        identity: SHA-256 of all that the batch depends on.
        attack_cost: see `Result`, as the others; runs of old did not count it.
    """

    identity: str
    attack_cost: Cost | None = None
    seconds: float
    network_evaluations: int
    warnings: tuple[str, ...]
    randomness: Literal["fresh", "fixed"]
