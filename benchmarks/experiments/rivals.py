"""`purify rivals`: our attacks and other packages', side by side on the same models, images, budget and draws.

Every contestant gets the same threat, gradient steps and draws per gradient; what it returns is judged by the same
fresh draws of the deployed model. The other packages are unchanged and know nothing of keys: they see a model that
draws anew at every call. pyautoattack is always there; torchattacks and foolbox take part where they are installed.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import attacks
from attacks.ensembles.autoattack import FreshDraws, seed_of, seeded
from attacks.ensembles.eot_autoattack import EOTAutoAttack
from attacks.gradient.apgd import APGD
from attacks.randomness import default_keys
from attacks.threats import Linf, Threat
from benchmarks.config.attack_kinds import NormConfig
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError
from benchmarks.evaluation.evaluate import Attack, Evaluation, evaluate
from benchmarks.evaluation.statistics import PairedDifference, paired_difference
from benchmarks.experiments import setup
from benchmarks.runs.environment import environment
from benchmarks.runs.folder import write_text
from benchmarks.runs.progress import progress_bar

SCHEMA = 1
STEPS, ENSEMBLE = "gradient steps", "ensembles"
PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")


@dataclass(frozen=True)
class Contestant:
    """An attack, the package it comes from, and what it competes in: all of ours in an `event` are compared with all
    others in it.
    """

    name: str
    package: str
    event: str
    attack: Attack


class Rivals:
    """A checked contest, ready to run.

    Args:
        settings: a configuration of `purify bench`: its models, images and draws, and the threat of its first attack
            within a norm ball.
        device: where.
        iterations: gradient steps of every attack; `eot` draws per gradient, on the defence; `queries` of the
            ensembles' Square.

    Raises:
        ConfigError, CheckpointError, DatasetError, ValueError: anything that cannot work, before any work starts.
    """

    def __init__(
        self, settings: BenchConfig, device: torch.device, iterations: int = 10, eot: int = 4, queries: int = 200
    ):
        threats = [attack.threat for attack in settings.attacks if isinstance(attack, NormConfig)]
        if not threats:
            raise ConfigError("rivals needs a threat: the configuration has no attack within a norm ball")
        self.settings, self.device = settings, device
        self.threat = threats[0].build()
        self.iterations, self.eot, self.queries = iterations, eot, queries
        self.contestants = {random: self._contestants(eot if random else 1) for random in (False, True)}
        self.setup = setup.load(settings, device, settings.data.images)

    def _contestants(self, eot: int) -> list[Contestant]:
        threat, iterations = self.threat, self.iterations
        official = version("pyautoattack")

        def autoattack(*names: str) -> Attack:
            return attacks.AutoAttack(threat, "custom", names, iterations, eot, self.queries)

        found = [
            Contestant("PGD", "ours", STEPS, attacks.PGD(threat, iterations, eot)),
            Contestant("APGD-CE", "ours", STEPS, APGD(threat, iterations, eot)),
            Contestant("EOT-AutoAttack", "ours", ENSEMBLE, EOTAutoAttack(threat, iterations, eot, self.queries, PARTS)),
            Contestant("APGD-CE", f"pyautoattack {official}", STEPS, autoattack("apgd-ce")),
            Contestant("AutoAttack", f"pyautoattack {official}", ENSEMBLE, autoattack(*PARTS)),
        ]
        for package, attack in (
            ("torchattacks", Torchattacks(threat, iterations, eot)),
            ("foolbox", Foolbox(threat, iterations, eot)),
        ):
            try:
                found.append(Contestant("PGD", f"{package} {version(package)}", STEPS, attack))
            except PackageNotFoundError:
                continue
        return found

    def run(self, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
        """Measures everything, writes rivals.json to `out` as it goes, and returns its contents; `say` gets a line per
        row.
        """
        models: dict[str, nn.Module] = {"undefended": self.setup.classifier, "defended": self.setup.defended()}
        rows: list[tuple[str, Contestant, Evaluation]] = []
        result: dict[str, Any] = {}
        for name, model in models.items():
            for contestant in self.contestants[name == "defended"]:
                title = f"{name}, {contestant.name} of {contestant.package}"
                with progress_bar(title, len(self.setup.x)) as update:
                    evaluation = self._evaluate(model, contestant.attack, lambda done, _: update(done, ""))
                rows.append((name, contestant, evaluation))
                say(f"{title}: {evaluation.single} % right, {evaluation.seconds:.1f} s")
                result = self._result(rows)
                write_text(out / "rivals.json", json.dumps(result, indent=2) + "\n")
        return result

    def _evaluate(self, model: nn.Module, attack: Attack, progress: Callable[[int, int], None]) -> Evaluation:
        x, y, settings = self.setup.x, self.setup.y, self.settings
        return evaluate(
            model,
            x,
            y,
            attack,
            settings.draws,
            settings.seed,
            image_ids=self.setup.image_ids,
            batch_size=settings.batch_size,
            progress=progress,
        )

    def _result(self, rows: list[tuple[str, Contestant, Evaluation]]) -> dict[str, Any]:
        settings = {
            "images": len(self.setup.x),
            "threat": str(self.threat),
            "iterations": self.iterations,
            "eot": self.eot,
            "queries": self.queries,
        }
        return {
            "schema": SCHEMA,
            **settings,
            "draws": self.settings.draws,
            "seed": self.settings.seed,
            "config": self.settings.model_dump(mode="json"),
            "weights": self.setup.weights,
            "environment": environment(self.device),
            "results": [_row(*row) for row in rows],
            "paired": [
                pair for row in rows if row[1].package == "ours" for other in rows for pair in _pair(row, other)
            ],
        }


def _row(model: str, contestant: Contestant, evaluation: Evaluation) -> dict[str, Any]:
    assert evaluation.attack_cost is not None
    return {
        "model": model,
        "attack": contestant.name,
        "package": contestant.package,
        "event": contestant.event,
        "single": evaluation.single.as_dict(),
        "worst_of": {str(n): estimate.as_dict() for n, estimate in evaluation.worst_of.items()},
        "own_verdict": evaluation.own.as_dict() if evaluation.own else None,
        "attack_cost": asdict(evaluation.attack_cost),
        "network_evaluations": evaluation.network_evaluations,
        "seconds": round(evaluation.seconds, 3),
        "warnings": sorted(set(evaluation.warnings)),
    }


def _pair(ours: tuple[str, Contestant, Evaluation], theirs: tuple[str, Contestant, Evaluation]) -> list[dict[str, Any]]:
    (model, contestant, evaluation), (other_model, rival, other) = ours, theirs
    if rival.package == "ours" or model != other_model or rival.event != contestant.event:
        return []
    difference = paired_difference(evaluation.per_image.numpy(), other.per_image.numpy())
    names = {"ours": contestant.name, "theirs": f"{rival.name} of {rival.package}"}
    return [{"model": model, **names, **difference.as_dict(), "verdict": verdict(difference)}]


def verdict(difference: PairedDifference) -> str:
    """Of the accuracy that ours leaves minus theirs: "stronger", "weaker", or "as strong" where the 95 % interval has
    room for 0.
    """
    low, high = difference.ci95
    return "weaker" if low > 0 else "stronger" if high < 0 else "as strong"


# packages that know nothing of keys


@dataclass(frozen=True)
class _Foreign:
    """PGD of another package, with our PGD's steps of 2.5 epsilon / iterations."""

    threat: Threat
    iterations: int
    eot: int

    @property
    def step_size(self) -> float:
        return 2.5 * self.threat.epsilon / self.iterations

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        keys: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Adversarial images (b, c, h, w), allowed by the threat; repeatable for the same batch and keys."""
        seed = seed_of(default_keys(len(x), x.device) if keys is None else keys)
        with seeded(seed, x.device):  # these packages draw from torch's global generator
            x_adv = self.attack(FreshDraws(model, seed).eval(), x, y)
        return self.threat.project(x_adv.detach(), x)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError


class Torchattacks(_Foreign):
    """torchattacks: `EOTPGD` where the attack is one of Linf, `PGDL2` (which has no EOT: a draw per step) where it is
    one of L2.
    """

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import torchattacks

        common = {"eps": self.threat.epsilon, "alpha": self.step_size, "steps": self.iterations}
        if isinstance(self.threat, Linf):
            return torchattacks.EOTPGD(model, **common, eot_iter=self.eot)(x, y)
        return torchattacks.PGDL2(model, **common)(x, y)


class Foolbox(_Foreign):
    """foolbox: `LinfPGD` or `L2PGD` behind its wrapper for EOT, which averages logits."""

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        if self.eot > 1:
            wrapped = foolbox.models.ExpectationOverTransformationWrapper(wrapped, n_steps=self.eot)
        kind = foolbox.attacks.LinfPGD if isinstance(self.threat, Linf) else foolbox.attacks.L2PGD
        _, clipped, _ = kind(steps=self.iterations, abs_stepsize=self.step_size)(
            wrapped, x, y, epsilons=self.threat.epsilon
        )
        return clipped
