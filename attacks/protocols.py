"""What a model may offer, beyond its logits, to attacks that look inside. All of it is optional and structural: a model
has the attributes or it has not.

Gradients of what is offered must be those of the model itself; a model that cannot give them raises ValueError.
"""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from attacks.cost import add_cost


class Inside(Protocol):
    """One draw of a model that first purifies its images by going through states, at p points of the way, its beginning
    and its end included.

    Every tensor is differentiable in the images; states may be noisy, and images of another size than the input, on the
    scale of [0, 1].
    """

    result: Tensor
    """(b, classes): the logits that `forward` returns."""
    noised: Tensor
    """(p, b, c, h, w): the images with the noise of the forward process at the points' times: what the states would be
    had nothing been removed.
    """
    states: Tensor
    """(p, b, c, h, w): the states; the first equals the first of `noised`."""
    estimates: Tensor | None
    """(p - 1, b, classes): the logits of the clean images that all states but the last stand for; None where not asked
    for.
    """


class OffersTrajectory(Protocol):
    """A model that shows its states."""

    def trajectory(self, x: Tensor, keys: Tensor, points: int, estimates: bool) -> Inside:
        """As `forward(x, keys=keys)`, for x (b, c, h, w) in [0, 1] and keys (b,) int64, at `points` points (fewer where
        the model has fewer).
        """


class OffersStages(Protocol):
    """A model that is `classifier(purifier(x, keys))`: images (b, c, h, w) in [0, 1] and keys (b,) int64 -> purified
    images -> logits.
    """

    purifier: Callable[[Tensor, Tensor], Tensor]
    classifier: Callable[[Tensor], Tensor]


def look_inside(model: nn.Module, x: Tensor, keys: Tensor, points: int, estimates: bool) -> Inside:
    """`model.trajectory`, counted as one forward pass, whatever estimates cost on top. Check the model by
    `check_offers` before.
    """
    add_cost(len(x), torch.is_grad_enabled() and x.requires_grad)
    return cast(OffersTrajectory, model).trajectory(x, keys, points, estimates)


def shows_states(model: nn.Module, x: Tensor, keys: Tensor) -> bool:
    """Whether the model has a trajectory that can be differentiated, tried on `x` (b, c, h, w) and `keys` (b,)."""
    if not hasattr(model, "trajectory"):
        return False
    try:
        with torch.no_grad():
            look_inside(model, x.clone(), keys, 2, False)  # a model may write to its input
    except ValueError:
        return False
    return True


def check_offers(model: nn.Module, attack: str, protocol: type) -> None:
    """Raises ValueError unless `model` has the attributes of `protocol`, one of this module."""
    # isinstance would not find a module's submodules
    missing = [name for name in _ATTRIBUTES[protocol] if not hasattr(model, name)]
    if missing:
        raise ValueError(
            f"{attack} looks inside the model, but {type(model).__name__} has no {' and no '.join(missing)}: "
            f"see attacks.protocols.{protocol.__name__}, or use an attack that needs logits only, as PGD or APGD"
        )


_ATTRIBUTES: dict[type, tuple[str, ...]] = {OffersTrajectory: ("trajectory",), OffersStages: ("purifier", "classifier")}
