"""The official AutoAttack (Croce & Hein 2020, arXiv 2003.01690), from the package `pyautoattack`, behind this package's
interface.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.attack import Attack
from attacks.expectation import Expectation, call, takes_keys
from attacks.inputs import check_inputs
from attacks.losses import margin
from attacks.randomness import default_keys, mix
from attacks.threats import Threat

ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
_SEED_LIMIT = 2**31
_CHOOSE, _CHOOSE_DRAWS = 0x41, 8  # what the attack's own draws that choose between two points are for, and their number


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
        if self.version not in ("standard", "rand", "custom"):
            raise ValueError(f"version={self.version!r} is not one of standard, rand, custom")
        if self.draws not in ("counted", "torch"):
            raise ValueError(f"draws={self.draws!r} is not one of counted, torch")
        if (self.version == "custom") != bool(self.attacks):
            raise ValueError(
                f'attacks go with version="custom" and only with it, got version={self.version!r},'
                f" attacks={self.attacks}"
            )
        if self.version != "custom" and (self.iterations, self.eot, self.queries) != (100, 1, 5000):
            raise ValueError(
                f'iterations, eot and queries are fixed by version={self.version!r}; change them with version="custom"'
            )
        for name in self.attacks:
            if name not in ATTACKS:
                raise ValueError(f"attacks: {name!r} is not one of {', '.join(ATTACKS)}")
        for name in ("iterations", "eot", "queries", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive integer, got {getattr(self, name)!r}")

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        keys: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Adversarial images (b, c, h, w); for a model without keys, an image that the official code did not break
        comes back unchanged.

        Arguments as for `PGD`. The keys seed the official code and the model's draws; the draw of one call depends on
        all calls before it, so results repeat for the same batch but depend on the batch.
        """
        return self.with_verdict(model, x, y, keys, progress)[0]

    def with_verdict(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        keys: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As a call, and (b,) bool: which images the official run counts as robust; its mean is the accuracy that the
        official log prints.
        """
        from pyautoattack import AutoAttack as Official  # not needed by the other attacks

        check_inputs(x, y, keys)
        keys = default_keys(len(x), x.device) if keys is None else keys.to(x.device)
        seed = int(mix(keys.sum())) % _SEED_LIMIT
        # the official code seeds torch globally
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            torch.manual_seed(seed)  # for what it draws before it does
            official = Official(
                FreshDraws(model, seed) if self.draws == "counted" else _GlobalDraws(model),
                norm=type(self.threat).__name__,
                eps=self.threat.epsilon,
                seed=seed,
                device=x.device,
                version=self.version,
                attacks=list(self.attacks) or None,
            )
            if self.version == "custom":
                self._shorten(official)
            x_adv, labels = official.run_standard_evaluation(x, y, batch_size=self.batch_size)
            if takes_keys(model):
                official.apgd.loss = (
                    "dlr"
                    if "apgd-dlr" in official.attacks_to_run and "apgd-ce" not in official.attacks_to_run
                    else "ce"
                )
                parts = zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)
                best = torch.cat([official.apgd.perturb(images, labels, best_loss=True) for images, labels in parts])
                expectation = Expectation(model, y, _CHOOSE_DRAWS, self.batch_size)
                first, second = (expectation.loss(points, mix(keys, _CHOOSE), margin) for points in (x_adv, best))
                clean = (x_adv == x).flatten(1).all(1)
                x_adv = torch.where((clean | (second > first))[:, None, None, None], best, x_adv)
        if progress is not None:
            progress(1, 1)
        return self.threat.project(x_adv.detach(), x), labels == y

    def _shorten(self, official: object) -> None:
        for part in (official.apgd, official.apgd_targeted, official.fab):  # type: ignore[attr-defined]
            part.n_iter = self.iterations
        official.apgd.n_restarts = official.fab.n_restarts = 1  # type: ignore[attr-defined]
        official.apgd.eot_iter = official.apgd_targeted.eot_iter = self.eot  # type: ignore[attr-defined]
        official.square.n_queries = self.queries  # type: ignore[attr-defined]


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
