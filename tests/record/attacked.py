"""Of the record: every point at which every attack evaluates its model."""

import hashlib
from collections.abc import Callable

import torch
from attack_models import Features, Inside
from record.digests import Entries, digest
from torch import Tensor, nn

import attacks


class _Small(nn.Module):
    """A smooth classifier of 5 classes with noise of its keys on the way, and the states and stages that attacks from
    inside ask for.
    """

    def __init__(self, noise: float):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(24, 192, generator=generator) / 8, requires_grad=False)
        self.second = nn.Parameter(torch.randn(5, 24, generator=generator), requires_grad=False)
        self.noise = noise
        self.seen = hashlib.sha256()

    def purifier(self, x: Tensor, keys: Tensor) -> Tensor:
        draws = torch.sin(torch.arange(192) * (1.0 + (keys % 1009)[:, None] * 0.37)).reshape(x.shape)
        return x + self.noise * draws.to(x.dtype)

    def classifier(self, x: Tensor) -> Tensor:
        return torch.tanh((x - 0.5).flatten(1) @ self.first.to(x.dtype).T * 2) @ self.second.to(x.dtype).T

    def logits(self, x: Tensor, keys: Tensor) -> Tensor:
        for tensor in (x, keys):
            self.seen.update(tensor.detach().contiguous().numpy().tobytes())
        return self.classifier(self.purifier(x, keys))


class _Keyed(_Small):
    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        return self.logits(x, keys)

    def trajectory(self, x: Tensor, keys: Tensor, points: int, estimates: bool) -> Inside:
        noisy = self.purifier(x, keys)
        shares = torch.linspace(0, 1, points)
        states = torch.stack([noisy + share * 0.3 * (torch.tanh(x) - noisy) for share in shares])
        noised = torch.stack([x + (1 - share) * (noisy - x) for share in shares])
        classes = torch.stack([self.classifier(state) for state in states[:-1]]) if estimates else None
        return Inside(self.logits(x, keys), noised, states, classes)


class _Plain(_Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x, torch.zeros(len(x), dtype=torch.int64))


def attack_settings() -> dict[str, object]:
    linf, l2, near = attacks.Linf(0.05), attacks.L2(0.6), attacks.FeatureDistance(Features(), 0.2)
    found: dict[str, object] = {}
    for norm, threat in (("Linf", linf), ("L2", l2)):
        found |= {
            f"PGD {norm}": attacks.PGD(threat, steps=4, eot=3),
            f"PGD {norm} restarts": attacks.PGD(
                threat,
                steps=3,
                eot=2,
                restarts=3,
                momentum=0.5,
                schedule="cosine",
                stop_draws=2,
                loss="margin",
                batch_size=5,
            ),
            f"APGD {norm}": attacks.APGD(threat, iterations=12, eot=2),
            f"APGD {norm} restarts": attacks.APGD(
                threat, iterations=9, eot=2, restarts=2, target_classes=2, stop_draws=2, batch_size=7
            ),
            # as many runs as pass over the keys of other purposes
            f"APGD {norm} many runs": attacks.APGD(threat, iterations=4, target_classes=4, restarts=2),
            f"FAB {norm} many runs": attacks.FAB(threat, iterations=2, restarts=2),
            f"FAB {norm}": attacks.FAB(threat, iterations=4, eot=2, target_classes=2),
            f"FAB {norm} restarts": attacks.FAB(
                threat, iterations=3, eot=1, target_classes=0, restarts=2, stop_draws=2
            ),
            f"Square {norm}": attacks.Square(threat, queries=80, eot=2),
            f"Square {norm} labels": attacks.Square(
                threat, queries=90, eot=2, answers="labels", restarts=2, stop_draws=2
            ),
            f"SPSA {norm}": attacks.SPSA(threat, iterations=4, restarts=2, stop_draws=2),
            f"DeviatedReconstruction {norm}": attacks.DeviatedReconstruction(
                threat, iterations=6, eot=2, restarts=2, estimates=0.5, stop_draws=2
            ),
            f"DiffHammer {norm}": attacks.DiffHammer(threat, iterations=6, eot=3, restarts=2, stop_draws=2),
            f"EOTAutoAttack {norm}": attacks.EOTAutoAttack(threat, iterations=6, eot=2, queries=60),
            f"Strongest {norm}": attacks.Strongest(threat, 400, eot=2),
            f"AutoAttack {norm}": attacks.AutoAttack(
                threat, "custom", ("apgd-ce", "square"), iterations=4, eot=2, queries=20
            ),
        }
    found |= {
        "StAdv": attacks.StAdv(iterations=5, eot=2, restarts=2, stop_draws=2),
        "ReColorAdv": attacks.ReColorAdv(iterations=5, eot=2, restarts=2, stop_draws=2),
        "LowFrequency": attacks.LowFrequency(near, iterations=5, eot=2, restarts=2, stop_draws=2),
        "PerceptualPGD": attacks.PerceptualPGD(near, iterations=4, eot=2, restarts=2, stop_draws=2, cg_iterations=3),
    }
    return found


def attacked() -> Entries:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(6, 3, 8, 8, generator=generator)
    keys = torch.tensor([5, -3, 2**60, 0, 11, 12])

    def run(attack: Callable[..., Tensor], model: _Small, **options: object) -> str:
        with torch.no_grad():
            y = model.classifier(x).argmax(1)
            y[0] = (y[0] + 1) % 5  # one image that is wrong as it is
        if options.pop("targeted", False):
            options["targets"] = (y + 2) % 5
        if options.pop("started", False):
            options["start"] = (x + 0.01).clamp(0, 1)
        counted: list[tuple[int, int]] = []
        options |= {"progress": lambda done, total: counted.append((done, total))}
        model.seen = hashlib.sha256()
        with attacks.count_cost() as cost:
            result = attack(model, x, y, keys=keys, **options)
        return (
            f"{digest(result)} {model.seen.hexdigest()[:16]} {cost.forward} {cost.backward}"
            f" {hashlib.sha256(str(counted).encode()).hexdigest()[:8]}"
        )

    for name, attack in attack_settings().items():
        yield f"attack {name}, random", lambda attack=attack: run(attack, _Keyed(0.1))
        if "restarts" not in name and not name.startswith(("Deviated", "DiffHammer")):
            yield f"attack {name}, plain", lambda attack=attack: run(attack, _Plain(0.0))
        if not name.startswith(("AutoAttack",)):
            yield f"attack {name}, targeted", lambda attack=attack: run(attack, _Keyed(0.1), targeted=True)
        if not name.startswith(("AutoAttack", "StAdv", "ReColor", "LowFrequency")) and "restarts" not in name:
            yield f"attack {name}, started", lambda attack=attack: run(attack, _Keyed(0.1), started=True)
    nearest = attacks.FAB(attacks.L2(0.6), iterations=4, eot=2, target_classes=2)
    yield (
        "attack FAB, minimal",
        lambda: run(lambda *a, **k: torch.cat([part.flatten() for part in nearest.minimal(*a, **k)]), _Keyed(0.05)),
    )
