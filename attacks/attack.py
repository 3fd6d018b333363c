"""What every attack is, and what its caller may ask of it."""

from typing import Any, ClassVar


class Attack:
    """Settings of an attack; what it can do stands in attributes of its class.

    Attributes:
        threat: with `epsilon`, `distance(x_adv, x)` and a readable `str`.
        takes_targets: whether a call takes `targets`, classes to reach.
        takes_start: whether a call takes `start`, images to begin at.
        gives_verdict: whether it has a method `with_verdict`, which also hands out its own verdict.
        query_only: whether it reads answers alone, not gradients.
        lengths: the settings that its cost grows with in proportion; the first is what results report as iterations.
        unit: of the first of `lengths`.
    """

    threat: Any

    takes_targets: ClassVar[bool] = True
    takes_start: ClassVar[bool] = True
    gives_verdict: ClassVar[bool] = False
    query_only: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("iterations",)
    unit: ClassVar[str] = "steps"
