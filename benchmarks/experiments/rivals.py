"""`purify rivals`: our attacks and other packages', side by side on the same models, images, budget and draws.

Every contestant gets the same threat, gradient steps and draws per gradient; what it returns is judged by the same
fresh draws of the deployed model. The other packages are unchanged and know nothing of keys: they see a model that
draws anew at every call. pyautoattack is always there; torchattacks and foolbox take part where they are installed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

import attacks
from attacks.ensembles.eot_autoattack import EOTAutoAttack
from attacks.gradient.apgd import APGD
from benchmarks.config.attack_kinds import NormConfig
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError
from benchmarks.evaluation.evaluate import Attack, evaluate
from benchmarks.evaluation.result import Evaluation
from benchmarks.evaluation.statistics import PairedDifference, paired_difference
from benchmarks.experiments import setup
from benchmarks.experiments.foreign_attacks import Foolbox, Torchattacks
from benchmarks.runs.environment import environment
from benchmarks.runs.progress import progress_bar
from benchmarks.runs.schema import RivalsResult, write
from benchmarks.runs.schema.rivals import RivalPair, RivalRow

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

    def meets(self, other: "Contestant") -> bool:
        """Whether this is one of ours, and the other another package's in the same event."""
        return self.package == "ours" != other.package and other.event == self.event


_Measured = tuple[str, Contestant, Evaluation]
"""A model's name, and what an attack left of it."""


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

    def run(self, out: Path, say: Callable[[str], None]) -> RivalsResult:
        """Measures everything, writes rivals.json to `out` as it goes, and returns its contents; `say` gets a line per
        row.
        """
        models: dict[str, nn.Module] = {"undefended": self.setup.classifier, "defended": self.setup.defended()}
        rows: list[_Measured] = []
        for name, model in models.items():
            for contestant in self.contestants[name == "defended"]:
                title = f"{name}, {contestant.name} of {contestant.package}"
                evaluation = self._evaluate(model, contestant.attack, title)
                rows.append((name, contestant, evaluation))
                say(f"{title}: {evaluation.single} % right, {evaluation.seconds:.1f} s")
                result = self._result(rows)
                write(out / "rivals.json", result)
        return result

    def _evaluate(self, model: nn.Module, attack: Attack, title: str) -> Evaluation:
        settings = self.settings
        with progress_bar(title, len(self.setup.x)) as update:
            return evaluate(
                model,
                self.setup.x,
                self.setup.y,
                attack,
                settings.draws,
                settings.seed,
                image_ids=self.setup.image_ids,
                batch_size=settings.batch_size,
                progress=lambda done, _: update(done, ""),
            )

    def _result(self, rows: list[_Measured]) -> RivalsResult:
        return RivalsResult(
            schema_version=1,
            images=len(self.setup.x),
            threat=str(self.threat),
            iterations=self.iterations,
            eot=self.eot,
            queries=self.queries,
            draws=self.settings.draws,
            seed=self.settings.seed,
            config=self.settings.model_dump(mode="json"),
            weights=self.setup.weights,
            environment=environment(self.device),
            results=tuple(_row(*row) for row in rows),
            paired=tuple(
                _pair(row, other) for row in rows for other in rows if row[0] == other[0] and row[1].meets(other[1])
            ),
        )


def _row(model: str, contestant: Contestant, evaluation: Evaluation) -> RivalRow:
    assert evaluation.attack_cost is not None
    return RivalRow(
        model=model,
        attack=contestant.name,
        package=contestant.package,
        event=contestant.event,
        single=evaluation.single,
        worst_of=evaluation.worst_of,
        own_verdict=evaluation.own,
        attack_cost=evaluation.attack_cost,
        network_evaluations=evaluation.network_evaluations,
        seconds=round(evaluation.seconds, 3),
        warnings=tuple(sorted(set(evaluation.warnings))),
    )


def _pair(ours: _Measured, theirs: _Measured) -> RivalPair:
    (model, contestant, evaluation), (_, rival, other) = ours, theirs
    difference = paired_difference(evaluation.per_image.numpy(), other.per_image.numpy())
    return RivalPair(
        model=model,
        ours=contestant.name,
        theirs=f"{rival.name} of {rival.package}",
        value=difference.value,
        ci95=difference.ci95,
        p_value=difference.p_value,
        verdict=verdict(difference),
    )


def verdict(difference: PairedDifference) -> str:
    """Of the accuracy that ours leaves minus theirs: "stronger", "weaker", or "as strong" where the 95 % interval has
    room for 0.
    """
    low, high = difference.ci95
    return "weaker" if low > 0 else "stronger" if high < 0 else "as strong"
