"""What is checked and counted of a model while it is measured."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from attacks.expectation import takes_keys
from purify.purifiers import Purifier
from purify.score.model import ScoreModel


def check_inference_mode(model: nn.Module) -> None:
    batch_dependent = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    names = [name for name, module in model.named_modules() if module.training and isinstance(module, batch_dependent)]
    if names:
        warnings.warn(
            f"{len(names)} batch-norm or dropout layers are in training mode (first: {names[0]}): call .eval() on the"
            " model",
            stacklevel=3,
        )


def check_noise_can_be_fixed(model: nn.Module, attack_model: nn.Module | None) -> None:
    for name, module, random in (
        ("model", model, True),
        ("attack_model", attack_model, attack_model is not None and _holds_purifier(attack_model)),
    ):
        if random and not takes_keys(module):  # type: ignore[arg-type]
            raise ValueError(
                f'randomness="fixed" needs {name} to take `keys` in its forward; that of {type(module).__name__}'
                " does not"
            )


def _holds_purifier(model: nn.Module) -> bool:
    return any(isinstance(module, Purifier) for module in model.modules())


def check_keys_arrive(model: nn.Module) -> None:
    if not takes_keys(model) and _holds_purifier(model):
        message = (
            f"{type(model).__name__}.forward has no parameter `keys`, so the purifier inside draws fresh noise at every"
            " call"
        )
        warnings.warn(f"{message}: results depend on the batch; give it `keys=None` and pass them on", stacklevel=3)


@contextmanager
def count_network_evaluations(*models: nn.Module) -> Iterator[Callable[[], int]]:
    """Counts the images that go through the score networks of `models`."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += len(output)

    scores = {id(m): m for model in models for m in model.modules() if isinstance(m, ScoreModel)}
    handles = [score.register_forward_hook(count) for score in scores.values()]
    try:
        yield lambda: total
    finally:
        for handle in handles:
            handle.remove()
