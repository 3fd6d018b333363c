"""What every attack is: one call around the one method that an attack writes, and what a caller may ask of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeGuard, TypeVar, final

import torch
from torch import Tensor, nn

from attacks.cost import count_cost
from attacks.inputs import check_inputs, check_run_settings, check_start, check_targets
from attacks.protocols import check_offers
from attacks.randomness import default_keys
from attacks.task import BadGradients, Progress, Task, part_of, whole

Result = TypeVar("Result")


class Attack(ABC):
    """Settings of an attack, checked when it is made; what it can do stands in attributes of its class.

    A new attack is a frozen dataclass of its settings with the method `run`. What it has of the usual settings
    (`iterations`, `eot`, `restarts`, `batch_size`, `stop_draws`, `loss`, ...) is checked here; one that checks more
    does so in its `__post_init__`, and calls this one's.

    Attributes:
        threat: with `epsilon`, `distance(x_adv, x)` and a readable `str`.
        takes_targets: whether a call takes `targets`, classes to reach.
        takes_start: whether a call takes `start`, images to begin at.
        gives_verdict: whether it has a method `with_verdict`, which also hands out its own verdict.
        query_only: whether it reads answers alone, not gradients.
        by_image: whether what becomes of an image is a function of the image and its key, not of the others.
        resumable: whether an unfinished call can go on from a saved state.
        lengths: the settings that its cost grows with in proportion; the first is what results report as iterations.
        unit: of the first of `lengths`.
        other_names: names under which the constructor takes settings too -> the settings' own.
    """

    threat: Any

    takes_targets: ClassVar[bool] = True
    takes_start: ClassVar[bool] = True
    gives_verdict: ClassVar[bool] = False
    query_only: ClassVar[bool] = False
    by_image: ClassVar[bool] = True
    resumable: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("iterations",)
    unit: ClassVar[str] = "steps"
    other_names: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        if "__call__" in vars(cls):
            raise TypeError(f"{cls.__name__} must write `run`: the call of every attack is that of attacks.Attack")
        if cls.gives_verdict != hasattr(cls, "with_verdict"):
            raise TypeError(f"{cls.__name__}: gives_verdict must say whether it has a method `with_verdict`")

    def __post_init__(self) -> None:
        check_run_settings(self)

    @property
    def revision(self) -> int:
        """How often a new version of this package changed what the same settings make of the same keys: an unfinished
        measurement by another revision does not go on.
        """
        return 0

    @property
    def needs(self) -> type | None:
        """What it looks at inside a model, a protocol of `attacks.protocols`; None: nothing but logits."""
        return None

    @final
    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        keys: Tensor | None = None,
        progress: Progress | None = None,
        *,
        targets: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images.

        Args:
            model: images in [0, 1] -> logits; called as `model(x, keys=...)` where its `forward` takes keys, else as
                `model(x)`.
            x: (b, c, h, w), floating point, in [0, 1].
            y: (b,) int64 labels.
            keys: (b,) int64: the attack's randomness for each image; default 0 .. b - 1.
            progress: progress(done, total), called after every gradient, or in the attack's `unit`.
            targets: (b,) int64, other classes than the labels: the attack seeks these predictions instead of any wrong
                one. Only where `takes_targets`.
            start: (b, c, h, w), where the first restart begins, allowed by the threat model: an earlier attack's
                result, say. Only where `takes_start`.

        Returns:
            (b, c, h, w), detached, allowed by the threat model.

        Raises:
            ValueError: images out of range or not finite, labels, targets or a start that do not fit; a model that
                lacks what the attack `needs`, and what else the attack says.

        Warns (UserWarning) of gradients that vanish or are not finite.
        """
        return self._attacked(self.run, model, x, y, keys, progress, targets, start).detach()

    @abstractmethod
    def run(self, task: Task) -> Tensor:
        """Adversarial images (b, c, h, w), allowed by the threat model, for a call whose arguments are checked."""

    def _attacked(
        self,
        run: Callable[[Task], Result],
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        keys: Tensor | None,
        progress: Progress | None,
        targets: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Result:
        """What `run` makes of the arguments of a call; whoever called the caller of this is warned."""
        x, start = x.detach(), None if start is None else start.detach()
        self._check_call(model, x, y, keys, targets, start)
        gradients = BadGradients(len(x), x.device)
        with count_cost() as cost, part_of(None):
            result = run(
                Task(
                    model=model,
                    x=x,
                    y=y,
                    keys=default_keys(len(x), x.device) if keys is None else keys.to(x.device),
                    targets=targets,
                    start=start,
                    progress=progress or _nobody,
                    gradients=gradients,
                    cost=cost,
                )
            )
        of = whole()
        if of is None:
            gradients.warn(stacklevel=3)
        else:
            of[0].add(gradients, of[1])
        return result

    def _check_call(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        keys: Tensor | None,
        targets: Tensor | None,
        start: Tensor | None,
    ) -> None:
        check_inputs(x, y, keys)
        name = type(self).__name__
        if targets is not None and not self.takes_targets:
            raise ValueError(f"{name} has no targeted form: leave out targets")
        if start is not None and not self.takes_start:
            raise ValueError(f"{name} cannot begin at given images: leave out start")
        check_targets(targets, y)
        if start is not None:
            with torch.no_grad():
                check_start(start, x, self.threat.distance, self.threat.epsilon)
        if self.needs is not None:
            check_offers(model, self._named, self.needs)

    @property
    def _named(self) -> str:
        """What error messages call it."""
        return type(self).__name__


class GivesVerdict(Protocol):
    """An attack that also judges by itself."""

    def with_verdict(
        self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor | None = None, progress: Progress | None = None
    ) -> tuple[Tensor, Tensor]:
        """As a call, and (b,) bool: which images it counts as robust."""


def gives_verdict(attack: object) -> TypeGuard[GivesVerdict]:
    """Whether any attack, an `Attack` or a user's own callable of the same arguments, has a verdict of its own."""
    return bool(getattr(attack, "gives_verdict", hasattr(attack, "with_verdict")))


def _nobody(done: int, total: int) -> None:
    """The progress of a call that reports to nobody."""
