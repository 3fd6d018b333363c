"""What everything that is written has in common."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from benchmarks.evaluation.statistics import PairedDifference


class Record(BaseModel):
    """Base of all that stands in a file: immutable, and read with whatever keys another version added.

    What is written is what was given, in the order of the fields: a key that a row does not have stays out of its
    file. Fields with defaults are those that files of old lack.
    """

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True, ser_json_inf_nan="constants")

    VERSION: ClassVar[int | str] = 1
    """Of the kind of file. Where the file itself says it, under `schema`, no other one is read."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, as they stand in the file."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Difference(Record):
    """A paired difference of accuracies, see `benchmarks.evaluation.statistics.PairedDifference`.

    Attributes:
        value: mean over images; `ci95` its interval; `p_value` of a two-sided test.
    """

    value: float
    ci95: tuple[float, float]
    p_value: float

    @property
    def difference(self) -> PairedDifference:
        """The three numbers as one."""
        return PairedDifference(self.value, self.ci95, self.p_value)
