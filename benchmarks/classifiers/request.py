"""What a caller of `load_classifier` asked for, and what every source of classifiers does with it."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

SOURCES = ("robustbench", "timm", "torchvision", "pyautoattack", "diffpure", "module")
"""What may stand before the colon of a name; each is answered for by the module `from_...`, imported when it is asked
for.
"""

RANDOM = "random"
"""The value of `weights` that asks for random weights: the same ones every time."""


@dataclass(frozen=True)
class Request:
    """The arguments of `load_classifier`, `name` without the source in front of it."""

    name: str
    dataset: str | None = None
    threat: str | None = None
    weights: str | None = None

    @property
    def random(self) -> bool:
        """Whether random weights are asked for."""
        return self.weights == RANDOM

    def only_default_weights(self, source: str, way_out: str) -> None:
        """Raises ValueError where `weights` is neither None nor "random"."""
        if self.weights not in (None, RANDOM):
            raise ValueError(
                f"weights={self.weights!r}: classifiers of {source} take weights={RANDOM!r} or none. {way_out}"
            )


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Makes PyTorch's random initialisation repeatable inside, and leaves the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def nearest(name: str, known: Iterable[str]) -> str:
    """Up to five of the known names, those most like `name` first, for a message."""
    known = list(known)
    lower = {entry.lower(): entry for entry in known}
    alike = [lower[entry] for entry in difflib.get_close_matches(name.lower(), lower, n=5, cutoff=0.4)]
    alike += [entry for entry in known if name.lower() in entry.lower() and entry not in alike]
    return ", ".join((alike or known)[:5])
