"""`purify bench`: one configuration, one folder, one table.

A folder holds config.yaml, summary.json, images.jsonl (one line per image and row), batches/ (what is done so far, with
the adversarial images), and figures. Every batch is stored as it is finished, so an interrupted run goes on with what
it has.

With `diagnose` more rows are measured, on few images, for the signs of a broken evaluation (`benchmarks.diagnostics`);
they do not join the results.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from attacks.cost import Cost
from attacks.perceptual.feature_distance import FeatureDistance
from benchmarks.config.attack import AttackConfig, ModelName
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError
from benchmarks.evaluation.evaluate import ATTACK_DRAW, Attack, Evaluation, Randomness, evaluate
from benchmarks.evaluation.statistics import paired_difference
from benchmarks.evaluation.targets import choose_targets
from benchmarks.experiments import diagnostics, setup
from benchmarks.runs.environment import environment, peak_memory
from benchmarks.runs.fingerprints import fingerprint, fingerprint_model
from benchmarks.runs.folder import RunError, write_text
from benchmarks.runs.progress import progress_bar

SCHEMA = 1
# of an evaluation, in a batch's file
_FACTS, _OPTIONAL = ("seconds", "network_evaluations", "warnings", "randomness"), ("own_verdict", "targets")
_PURIFIER_FACTS = ("scheme", "t_star", "steps", "solver")


@dataclass(frozen=True)
class Row:
    """One line of the table: which model is judged under which attack."""

    model_name: ModelName
    model: nn.Module
    attack_config: AttackConfig | None = None
    attack: Attack | None = None
    attack_model: nn.Module | None = None

    @property
    def attack_name(self) -> str:
        return "none" if self.attack_config is None else self.attack_config.label

    @property
    def threat(self) -> Any:
        """With a distance, an epsilon and a name: `attacks.Threat`, for instance."""
        return None if self.attack is None else self.attack.threat

    @property
    def randomness(self) -> Randomness:
        """Fixed noise is asked of the defence only: the bare classifier has none."""
        return (
            "fresh" if self.attack_config is None or self.model_name == "undefended" else self.attack_config.randomness
        )


class Bench:
    """A checked experiment, ready to run.

    Args:
        settings: the configuration.
        device: where the models run.
        budget: what a time limit reduced, for the summary, see `benchmarks.experiments.cost_estimate.fit`.

    Raises:
        ConfigError, CheckpointError, DatasetError, ValueError: anything that cannot work, before any work starts.
    """

    def __init__(self, settings: BenchConfig, device: torch.device, budget: dict[str, Any] | None = None):
        self.settings = settings
        self.device = device
        self.budget = budget
        self.setup = setup.load(settings, device, settings.data.images)
        self.x, self.y, self.image_ids = self.setup.x, self.setup.y, self.setup.image_ids
        self.rows = list(self._rows())
        self.weights = self.setup.weights | self._weights_of_features()
        # What a batch depends on: options that keep their default may be added later without making old runs strangers.
        chosen = settings.model_dump(mode="json", exclude={"audit", "pictures"}, exclude_defaults=True)
        self.identity = fingerprint(json.dumps(chosen), *self.weights.values(), self.setup.fingerprint_data())

    def _rows(self) -> Iterator[Row]:
        self.models: dict[ModelName, nn.Module] = {
            "undefended": self.setup.classifier,
            "defended": self.setup.defended(),
        }
        for name, model in self.models.items():
            yield Row(name, model)
            for attack in self.settings.attacks:
                if attack.on(name):
                    yield self.row(name, attack)

    def _weights_of_features(self) -> dict[str, str]:
        """SHA-256 of the network that each attack within a distance in features measures by."""
        rows = [row for row in self.rows if isinstance(row.threat, FeatureDistance)]
        return {f"features of {row.attack_name}": fingerprint_model(row.threat.features) for row in rows}

    def row(self, model_name: ModelName, attack: AttackConfig) -> Row:
        """That attack on that model.

        Raises:
            ValueError: settings that the attack or a surrogate's purifier refuses, a model that it cannot attack, a
                target that is no class.
        """
        model = self.models[model_name]
        attacked = self._attacked(attack, model)
        attack.check_model(attacked, tuple(self.x.shape[1:]))
        if isinstance(attack.target, int):
            self._check_target(attack)
        built = attack.build(model_name == "defended")
        if isinstance(built.threat, FeatureDistance):
            built.threat.features.to(self.device)
        return Row(model_name, model, attack, built, attacked)

    def _check_target(self, attack: AttackConfig) -> None:
        try:
            choose_targets(
                attack.target, self.setup.classifier, self.x[:1], self.y[:1], self.image_ids[:1].to(self.device)
            )  # type: ignore[arg-type]
        except ValueError as error:
            raise ConfigError(f"attack {attack.label!r}: {error}") from error

    def _attacked(self, attack: AttackConfig, deployed: nn.Module) -> nn.Module:
        """What the attack differentiates."""
        if attack.through == "classifier":
            return self.setup.classifier
        if attack.through == "surrogate":
            try:
                purifier = self.settings.purifier.updated(attack.surrogate)
                return replace(self.setup, settings=self.settings.model_copy(update={"purifier": purifier})).defended(
                    attack.gradient
                )
            except ValueError as error:
                raise ConfigError(f"attack {attack.label!r}, surrogate: {error}") from error
        return deployed if attack.gradient is None else self.setup.defended(attack.gradient)

    def run(
        self, out: Path, say: Callable[[str], None], diagnose: bool = False
    ) -> tuple[dict[str, Any], list[tuple[Row, Evaluation]]]:
        """Measures every batch that `out` does not hold yet; returns the summary and what it was made from. `say` gets
        a line per row.

        A run that was diagnosed once is so for good.

        Raises:
            RunError: `out` holds batches of another configuration or of other weights.
        """
        (out / "batches").mkdir(exist_ok=True)
        self._keep_budget(out / "budget.json")
        # a configuration's own attacks have no such names
        diagnose = diagnose or any("+" in path.name for path in (out / "batches").iterdir())
        done: list[tuple[Row, Evaluation]] = []
        for number, row in enumerate(self.rows, 1):
            done.append((row, self._measure(out, row, len(self.x), f"{number}/{len(self.rows)}", say)))
            self._write(out, done)
        more: list[tuple[Row, Evaluation]] = []
        for row in self._probes(done) if diagnose else []:
            more.append((row, self._measure(out, row, min(len(self.x), diagnostics.IMAGES), "diagnosis", say)))
            self._write(out, done, more)
        return self.summary(done, more), done

    def _keep_budget(self, path: Path) -> None:
        """A run that goes on is still the one that was reduced."""
        if self.budget is not None:
            write_text(path, json.dumps(self.budget) + "\n")
        elif path.exists():
            self.budget = json.loads(path.read_text())

    def _measure(self, out: Path, row: Row, images: int, number: str, say: Callable[[str], None]) -> Evaluation:
        """The first `images` images under this row."""
        title = f"[{number}] {row.model_name}, attack {row.attack_name}"
        with progress_bar(title, images) as update:
            starts = range(0, images, self.settings.batch_size)
            evaluation = Evaluation.join(
                [
                    self._batch(out, row, slice(first, min(first + self.settings.batch_size, images)), update)
                    for first in starts
                ]
            )
        say(f"{title}: {evaluation.single} % right, {evaluation.seconds:.1f} s")
        return evaluation

    def _probes(self, done: list[tuple[Row, Evaluation]]) -> Iterator[Row]:
        """For each model and threat, the rows that say whether the strongest white-box attack can be trusted."""
        groups: dict[tuple[str, str], list[Row]] = {}
        for row, _ in done:
            if row.attack_config is not None and row.randomness == "fresh":
                groups.setdefault((row.model_name, str(row.threat)), []).append(row)
        evaluations = {id(row): evaluation for row, evaluation in done}
        for rows in groups.values():
            candidates = {row.attack_name: row for row in rows}
            best = diagnostics.strongest(_checked(row, evaluations[id(row)]) for row in rows)
            if best is not None:
                row = candidates[best.attack]
                yield from (
                    self.row(row.model_name, probe)
                    for probe in diagnostics.probes(row.attack_config, row.model_name, self.x)
                )  # type: ignore[arg-type]

    def _batch(self, out: Path, row: Row, rows: slice, update: Callable[[int, str], None]) -> Evaluation:
        path = out / "batches" / f"{row.model_name}.{row.attack_name}.{rows.start:06d}.safetensors"
        if path.exists():
            return self._load_batch(path)
        part = self.evaluate(row, rows, lambda done, _: update(rows.start + done, ""))
        self._save_batch(path, part)
        return part

    def evaluate(self, row: Row, rows: slice, progress: Callable[[int, int], None] | None = None) -> Evaluation:
        """Some of the images under this row."""
        return evaluate(
            row.model,
            self.x[rows],
            self.y[rows],
            row.attack,
            self.settings.draws,
            self.settings.seed,
            attack_model=row.attack_model,
            randomness=row.randomness,
            target=None if row.attack_config is None else row.attack_config.target,
            image_ids=self.image_ids[rows],
            batch_size=self.settings.batch_size,
            progress=progress,
        )

    def _save_batch(self, path: Path, part: Evaluation) -> None:
        tensors: dict[str, Tensor] = {
            "predictions": part.predictions,
            "labels": part.labels,
            "x_adv": part.x_adv.contiguous(),
        }
        tensors |= {name: getattr(part, name) for name in _OPTIONAL if getattr(part, name) is not None}
        facts = {
            "identity": self.identity,
            "attack_cost": _cost(part),
            **{name: getattr(part, name) for name in _FACTS},
        }
        temporary = path.with_suffix(f".{os.getpid()}.partial")
        try:
            save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})
            os.replace(temporary, path)
        except SafetensorError as error:  # a full disk, for one
            raise OSError(
                f"{path} cannot be written: {error}; what is finished is kept, go on with --resume"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _load_batch(self, path: Path) -> Evaluation:
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                predictions, labels, x_adv = (file.get_tensor(name) for name in ("predictions", "labels", "x_adv"))
                optional = {name: file.get_tensor(name) for name in _OPTIONAL if name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is not a whole batch, delete it to have it made again: {error}") from error
        if facts["identity"] != self.identity:
            raise RunError(
                f"{path} was made with another configuration, other weights or other images; give another --out"
            )
        cost = Cost(**facts["attack_cost"]) if facts.get("attack_cost") else None  # runs of old did not count it
        known = {
            "seconds": facts["seconds"],
            "network_evaluations": facts["network_evaluations"],
            "randomness": facts["randomness"],
        }
        return Evaluation(
            predictions, labels, x_adv, **known, warnings=tuple(facts["warnings"]), attack_cost=cost, **optional
        )

    def _write(
        self, out: Path, done: list[tuple[Row, Evaluation]], more: list[tuple[Row, Evaluation]] | None = None
    ) -> None:
        lines = [json.dumps(line) for row, evaluation in done for line in self._image_lines(row, evaluation)]
        write_text(out / "images.jsonl", "\n".join(lines) + "\n")
        write_text(out / "summary.json", json.dumps(self.summary(done, more or []), indent=2) + "\n")

    def _image_lines(self, row: Row, evaluation: Evaluation) -> Iterable[dict[str, Any]]:
        distances = self._distances(row, evaluation)
        for image, label, labels, distance in zip(
            self.image_ids.tolist(), evaluation.labels.tolist(), evaluation.predictions.tolist(), distances, strict=True
        ):
            yield {
                "image": image,
                "label": label,
                "model": row.model_name,
                "attack": row.attack_name,
                "predictions": labels,
                "distance": distance,
            }

    @torch.no_grad()
    def _distances(self, row: Row, evaluation: Evaluation) -> list[float]:
        if row.threat is None:
            return [0.0] * len(self.x)
        parts = zip(
            evaluation.x_adv.split(self.settings.batch_size), self.x.split(self.settings.batch_size), strict=True
        )
        return torch.cat([row.threat.distance(x_adv.to(self.device), x) for x_adv, x in parts]).tolist()

    def summary(self, done: list[tuple[Row, Evaluation]], more: list[tuple[Row, Evaluation]]) -> dict[str, Any]:
        """The contents of summary.json."""
        checked = [_checked(row, evaluation) for row, evaluation in (*done, *more)]
        return {
            "schema": SCHEMA,
            "seed": self.settings.seed,
            "images": len(self.x),
            "draws": self.settings.draws,
            "complete": len(done) == len(self.rows),
            "weights": self.weights,
            "config": self.settings.model_dump(mode="json"),
            "environment": environment(self.device),
            "peak_memory": peak_memory(self.device),
            "results": [self._result(row, evaluation) for row, evaluation in done],
            "paired": list(_paired(done)),
            "budget": self.budget,
            "diagnostics": [
                self._result(row, evaluation) | {"images": len(evaluation.labels)} for row, evaluation in more
            ],
            "looked_for": diagnostics.looked_for(checked),
            "flags": [flag.as_dict() for flag in diagnostics.flags(checked)],
        }

    def _result(self, row: Row, evaluation: Evaluation) -> dict[str, Any]:
        attack, purifier, defended = row.attack_config, self.settings.purifier, row.model_name == "defended"
        facts = attack.facts(defended) if attack else {"iterations": 0, "eot": 0, "restarts": 0}
        gradient = (attack and (attack.gradient or attack.surrogate.get("gradient"))) or getattr(
            purifier, "gradient", None
        )
        if not defended or (attack is not None and (attack.through == "classifier" or not attack.white_box)):
            gradient = None
        # else it is a verdict on another model
        own = evaluation.own if attack is None or attack.through == "deployed" else None
        return {
            "model": row.model_name,
            "attack": row.attack_name,
            "threat": str(row.threat) if row.threat else "none",
            "single": evaluation.single.as_dict(),
            "worst_of": {str(n): estimate.as_dict() for n, estimate in evaluation.worst_of.items()},
            "majority": {str(n): estimate.as_dict() for n, estimate in evaluation.majority.items()} or None,
            "own_verdict": own.as_dict() if own else None,
            "reached": evaluation.reached.as_dict() if evaluation.reached else None,
            "undefined": evaluation.undefined,
            "seconds": round(evaluation.seconds, 3),
            "network_evaluations": evaluation.network_evaluations,
            "attack_cost": _cost(evaluation),
            "gradient": gradient,
            **{key: getattr(purifier, key, None) if defended else None for key in _PURIFIER_FACTS},
            "purifier": purifier.model_dump(mode="json") if defended else None,
            **facts,
            "randomness": row.randomness,
            "warnings": sorted(set(evaluation.warnings)),
            "seeds": {
                "evaluation": self.settings.seed,
                "attack": self.settings.seed if attack else None,
                "attack_draw": ATTACK_DRAW if attack else None,
            },
        }


def _cost(evaluation: Evaluation) -> dict[str, int] | None:
    return asdict(evaluation.attack_cost) if evaluation.attack_cost else None


def _checked(row: Row, evaluation: Evaluation) -> diagnostics.Measured:
    return diagnostics.measured(row.model_name, row.attack_config, row.threat, evaluation)


def _paired(done: list[tuple[Row, Evaluation]]) -> Iterable[dict[str, Any]]:
    """Every attack against the first one of the same threat on the same model: difference of single-draw accuracy,
    image by image.
    """
    references: dict[tuple[str, str], tuple[Row, Evaluation]] = {}
    for row, evaluation in done:
        if row.attack_config is None:
            continue
        group = (row.model_name, str(row.threat))
        reference_row, reference = references.setdefault(group, (row, evaluation))
        if reference_row is not row:
            difference = paired_difference(evaluation.per_image.numpy(), reference.per_image.numpy())
            how = {"through": row.attack_config.through, "target": row.attack_config.target}
            yield {
                "model": row.model_name,
                "attack": row.attack_name,
                "reference": reference_row.attack_name,
                **how,
                **difference.as_dict(),
            }
