"""The official AutoAttack (Croce & Hein 2020, arXiv 2003.01690), from the package `pyautoattack`, behind this package's
interface.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.attack import Attack
from attacks.expectation import call, takes_keys
from attacks.inputs import also_called, check_choice, check_choices
from attacks.losses import margin
from attacks.randomness import OfAutoAttack, derive, mix
from attacks.restarts import where
from attacks.task import Progress, Task
from attacks.threats import Threat

ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
_SEED_LIMIT = 2**31
_CHOOSE_DRAWS = 8  # that choose between two points


@also_called(steps="iterations")
@dataclass(frozen=True)
class AutoAttack(Attack):
    """The official code, unchanged: "standard" (APGD-CE, APGD-T, FAB-T, Square), "rand" (APGD-CE and APGD-DLR with EOT
    20), or "custom".

    It knows nothing of keys and judges a random model by single draws: an image that one draw gets wrong is done
    (before any attack, if that draw saw the clean image), and an image that one draw gets right is given back clean.
    `with_verdict` hands that verdict out. To judge what comes back by fresh draws instead, neither a clean image nor
    the first point that one draw got wrong may stand for the attack: where the model takes keys, all images are
    attacked once more by the official APGD in its mode `best_loss`, which returns the point of highest loss, and of the
    two points the one with the larger mean margin over 8 draws is kept.

    Args:
        threat: `Linf` or `L2`.
        version: "standard", "rand" or "custom".
        attacks: for "custom", the attacks in order, from `ATTACKS`.
        iterations: for "custom", steps of APGD and FAB.
        eot: for "custom", draws per gradient of APGD.
        queries: for "custom", Square's queries.
        batch_size: images of one call of the official code.
        draws: where a model that takes keys gets its noise from in the official run. "counted": every call has keys of
            its own. "torch": from torch's global generator, as published defences draw it; the official code seeds that
            with the same number at every batch and every attack.
    """

    takes_targets: ClassVar[bool] = False
    takes_start: ClassVar[bool] = False
    gives_verdict: ClassVar[bool] = True
    by_image: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("iterations", "queries")

    threat: Threat
    version: Literal["standard", "rand", "custom"] = "standard"
    attacks: tuple[str, ...] = ()
    iterations: int = 100
    eot: int = 1
    queries: int = 5000
    batch_size: int = 128
    draws: Literal["counted", "torch"] = "counted"

    def __post_init__(self) -> None:
        check_choice(self, "version", ("standard", "rand", "custom"))
        check_choice(self, "draws", ("counted", "torch"))
        if (self.version == "custom") != bool(self.attacks):
            raise ValueError(
                f'attacks go with version="custom" and only with it, got version={self.version!r},'
                f" attacks={self.attacks}"
            )
        if self.version != "custom" and (self.iterations, self.eot, self.queries) != (100, 1, 5000):
            raise ValueError(
                f'iterations, eot and queries are fixed by version={self.version!r}; change them with version="custom"'
            )
        check_choices(self, "attacks", ATTACKS)
        super().__post_init__()

    def run(self, task: Task) -> Tensor:
        """As of `Attack`; for a model without keys, an image that the official code did not break comes back unchanged.

        The keys seed the official code and the model's draws; the draw of one call depends on all calls before it, so
        results repeat for the same batch but depend on the batch.
        """
        return self._judged(task)[0]

    def with_verdict(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        keys: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As a call, and (b,) bool: which images the official run counts as robust; its mean is the accuracy that the
        official log prints.
        """
        return self._attacked(self._judged, model, x, y, keys, progress)

    def _judged(self, task: Task) -> tuple[Tensor, Tensor]:
        x, y, model = task.x, task.y, task.model
        seed = seed_of(task.keys)
        drawn: nn.Module = FreshDraws(model, seed) if self.draws == "counted" else _GlobalDraws(model)
        if x.dtype != torch.float32:
            drawn = _Single(drawn, x.dtype)
        with seeded(seed, x.device):  # for what the official code draws before it seeds torch, globally, by itself
            official = self._official(drawn, seed, x.device)
            x_adv, labels = official.run_standard_evaluation(x.float(), y, batch_size=self.batch_size)
            if takes_keys(model):
                x_adv = self._once_more(official, task, x_adv.to(x.dtype))
        task.progress(1, 1)
        x_adv = where(_equal(x_adv, x.float()), x, x_adv.detach().to(x.dtype))
        return self.threat.project(x_adv, x), labels == y

    def _official(self, model: nn.Module, seed: int, device: torch.device) -> Any:
        from pyautoattack import AutoAttack as Official  # not needed by the other attacks

        official = Official(
            model,
            norm=type(self.threat).__name__,
            eps=self.threat.epsilon,
            seed=seed,
            device=device,
            version=self.version,
            attacks=list(self.attacks) or None,
        )
        if self.version == "custom":
            for part in (official.apgd, official.apgd_targeted, official.fab):
                part.n_iter = self.iterations
            official.apgd.n_restarts = official.fab.n_restarts = 1
            official.apgd.eot_iter = official.apgd_targeted.eot_iter = self.eot
            official.square.n_queries = self.queries
        return official

    def _once_more(self, official: Any, task: Task, x_adv: Tensor) -> Tensor:
        """Of the points `x_adv` and those of highest loss of the official APGD the ones of larger mean margin, clean
        images never.
        """
        names, x = official.attacks_to_run, task.x
        official.apgd.loss = "dlr" if "apgd-dlr" in names and "apgd-ce" not in names else "ce"
        parts = zip(torch.split(x, self.batch_size), torch.split(task.y, self.batch_size), strict=True)
        best = torch.cat(
            [official.apgd.perturb(images.float(), labels, best_loss=True).to(x.dtype) for images, labels in parts]
        )
        expectation, fresh = task.expectation(_CHOOSE_DRAWS, self.batch_size), derive(task.keys, OfAutoAttack.CHOOSE)
        first, second = (expectation.loss(points, fresh, margin) for points in (x_adv, best))
        return where(_equal(x_adv, x.float()) | (second > first), best, x_adv)


def seed_of(keys: Tensor) -> int:
    """A seed in [0, 2^31) of code that knows nothing of keys, for a batch of them (b,)."""
    return int(mix(keys.sum())) % _SEED_LIMIT


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators have this seed inside, and are as before afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class FreshDraws(nn.Module):
    """The model with new keys at every call, counted from a seed."""

    def __init__(self, model: nn.Module, seed: int):
        super().__init__()
        self.model = model
        self.seed = seed
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return call(self.model, x, mix(torch.arange(len(x), device=x.device), self.seed, self.calls))


class _GlobalDraws(nn.Module):
    """The model with keys from torch's global generator at every call."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return call(self.model, x, torch.randint(2**62, (len(x),)).to(x.device))


class _Single(nn.Module):
    """A model of another precision as one of single precision, the only one that the official code can do."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.to(self.dtype))
        return logits.float()


def _equal(first: Tensor, second: Tensor) -> Tensor:
    """(n,) bool: which images are the same."""
    return (first == second).flatten(1).all(1)
