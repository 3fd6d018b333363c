"""What `purify rivals` writes."""

from typing import Any, Literal

from pydantic import Field

from attacks.cost import Cost
from benchmarks.evaluation.statistics import Estimate
from benchmarks.runs.schema.record import Difference, Record


class RivalRow(Record):
    """One attack on one model.

    Attributes:
        model: "undefended" or "defended".
        attack: its name; `package` it comes from, "ours" or another with its version; `event` that it competes in.
        single: see `Result`, as what follows.
    """

    model: str
    attack: str
    package: str
    event: str
    single: Estimate
    worst_of: dict[int, Estimate]
    own_verdict: Estimate | None = None
    attack_cost: Cost
    network_evaluations: int
    seconds: float
    warnings: tuple[str, ...] = ()


class _Opponents(Record):
    model: str
    ours: str
    theirs: str


class RivalPair(Difference, _Opponents):  # fields of the last base come first
    """One of ours against one of another package: the difference of the accuracies that they leave.

    Attributes:
        model: attacked.
        ours: an attack of this package; `theirs` another's, "NAME of PACKAGE".
        verdict: on ours: "stronger", "weaker" or "as strong".
    """

    verdict: str


class RivalsResult(Record):
    """rivals.json.

    Attributes:
        schema_version: 1, under the key `schema`.
        images: how many.
        threat: in words.
        iterations: gradient steps of every attack; `eot` draws a gradient; `queries` of the ensembles' Square.
        draws: of the verdict; `seed` of all draws.
        config: see `Summary`, as `weights` and `environment`.
        results: the rows; `paired` ours against theirs.
    """

    schema_version: Literal[1] = Field(alias="schema")
    images: int
    threat: str
    iterations: int
    eot: int
    queries: int
    draws: int
    seed: int
    config: dict[str, Any] = {}
    weights: dict[str, str] = {}
    environment: dict[str, Any] = {}
    results: tuple[RivalRow, ...]
    paired: tuple[RivalPair, ...] = ()
