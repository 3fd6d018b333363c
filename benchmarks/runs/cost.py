"""What a run is going to cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RowCost:
    """About what a row costs for one image: `fixed` seconds, and `variable` ones that grow with the attack's length.

    `forward` and `backward`: evaluations of the attacked model by the attack; `network_evaluations`: of the score
    network in all.
    """

    model: str
    attack: str
    fixed: float
    variable: float
    forward: float
    backward: float
    network_evaluations: float

    @property
    def seconds(self) -> float:
        return self.fixed + self.variable


@dataclass(frozen=True)
class CostEstimate:
    """About what a run costs: its rows, images, and peak memory in MiB."""

    rows: tuple[RowCost, ...]
    images: int
    memory_mib: int

    @property
    def seconds(self) -> float:
        return self.images * sum(row.seconds for row in self.rows)
