"""`purify bench`: one configuration, one folder, one table.

A folder holds config.yaml, summary.json, images.jsonl (one line per image and row), batches/ (what is done so far, with
the adversarial images), and figures. Every batch is stored as it is finished, so an interrupted run goes on with what
it has.

With `diagnose` more rows are measured, on few images, for the signs of a broken evaluation
(`benchmarks.evaluation.diagnostics`); they do not join the results.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import attacks
from attacks.perceptual.feature_distance import FeatureDistance
from benchmarks.config.attack import AttackConfig, ModelName
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError
from benchmarks.config.sources import sources
from benchmarks.evaluation import diagnostics
from benchmarks.evaluation.evaluate import evaluate
from benchmarks.evaluation.result import Evaluation
from benchmarks.evaluation.targets import choose_targets
from benchmarks.experiments import probes, setup
from benchmarks.experiments.bench_rows import Measurement, Row
from benchmarks.experiments.bench_summary import distances_of, image_lines, pairs_of, probe_of, result_of
from benchmarks.runs.environment import environment, peak_memory
from benchmarks.runs.fingerprints import fingerprint, fingerprint_model
from benchmarks.runs.folder import RunError, check_identity
from benchmarks.runs.progress import progress_bar
from benchmarks.runs.schema import BatchFacts, Budget, Summary, read, write, write_lines

_OPTIONAL = ("own_verdict", "targets")  # of an evaluation, in a batch's file


class Bench:
    """A checked experiment, ready to run.

    Args:
        settings: the configuration.
        device: where the models run.
        budget: what a time limit reduced, for the summary, see `benchmarks.experiments.cost_estimate.fit`.

    Raises:
        ConfigError, CheckpointError, DatasetError, ValueError: anything that cannot work, before any work starts.
    """

    def __init__(self, settings: BenchConfig, device: torch.device, budget: Budget | None = None):
        self.settings = settings
        self.device = device
        self.budget = budget
        self.setup = setup.load(settings, device, settings.data.images)
        self.x, self.y, self.image_ids = self.setup.x, self.setup.y, self.setup.image_ids
        self.rows = list(self._rows())
        self.weights = self.setup.weights | self._weights_of_features()
        # What a batch depends on: options that keep their default may be added later without making old runs strangers.
        chosen = settings.model_dump(mode="json", exclude={"audit", "pictures"}, exclude_defaults=True)
        code = [*sources(settings).values(), *self._revisions()]
        self.identity = fingerprint(json.dumps(chosen), *self.weights.values(), self.setup.fingerprint_data(), *code)

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

    def _revisions(self) -> list[str]:
        """The attacks whose numbers another version of this package made otherwise."""
        built = {row.attack_name: row.attack for row in self.rows if isinstance(row.attack, attacks.Attack)}
        return [f"{name}: revision {attack.revision}" for name, attack in built.items() if attack.revision]

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
            self._check_target(attack, attack.target)
        built: Any = attack.build(model_name == "defended")
        if isinstance(built.threat, FeatureDistance):
            built.threat.features.to(self.device)
        return Row(model_name, model, attack, built, attacked)

    def _check_target(self, attack: AttackConfig, target: int) -> None:
        one, keys = (self.x[:1], self.y[:1]), self.image_ids[:1].to(self.device)
        try:
            choose_targets(target, self.setup.classifier, *one, keys)
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

    def run(self, out: Path, say: Callable[[str], None], diagnose: bool = False) -> tuple[Summary, list[Measurement]]:
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
        done: list[Measurement] = []
        for number, row in enumerate(self.rows, 1):
            done.append((row, self._measure(out, row, len(self.x), f"{number}/{len(self.rows)}", say)))
            self._write(out, done)
        more: list[Measurement] = []
        for row in self._probes(done) if diagnose else []:
            more.append((row, self._measure(out, row, min(len(self.x), probes.IMAGES), "diagnosis", say)))
            self._write(out, done, more)
        return self.summary(done, more), done

    def _keep_budget(self, path: Path) -> None:
        """A run that goes on is still the one that was reduced."""
        if self.budget is not None:
            write(path, self.budget, indent=None)
        elif path.exists():
            self.budget = read(path, Budget)

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

    def _probes(self, done: list[Measurement]) -> Iterator[Row]:
        """For each model and threat, the rows that say whether the strongest white-box attack can be trusted."""
        groups: dict[tuple[str, str], list[Measurement]] = {}
        for row, evaluation in done:
            if row.attack_config is not None and row.randomness == "fresh":
                groups.setdefault((row.model_name, str(row.threat)), []).append((row, evaluation))
        for group in groups.values():
            candidates = {row.attack_name: row for row, _ in group}
            best = diagnostics.strongest(_checked(group))
            strong = None if best is None else candidates[best.attack]
            if strong is not None and strong.attack_config is not None:
                for probe in probes.probes(strong.attack_config, strong.model_name, self.x):
                    yield self.row(strong.model_name, probe)

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
        facts = BatchFacts(
            identity=self.identity,
            attack_cost=part.attack_cost,
            seconds=part.seconds,
            network_evaluations=part.network_evaluations,
            warnings=part.warnings,
            randomness=part.randomness,
        )
        temporary = path.with_suffix(f".{os.getpid()}.partial")
        try:
            save_file(tensors, temporary, metadata={"facts": json.dumps(facts.as_json())})
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
                facts = BatchFacts.model_validate_json(file.metadata()["facts"])
                predictions, labels, x_adv = (file.get_tensor(name) for name in ("predictions", "labels", "x_adv"))
                optional = {name: file.get_tensor(name) for name in _OPTIONAL if name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is not a whole batch, delete it to have it made again: {error}") from error
        check_identity(path, facts.identity, self.identity)
        return Evaluation(
            predictions,
            labels,
            x_adv,
            facts.seconds,
            facts.network_evaluations,
            facts.warnings,
            facts.randomness,
            attack_cost=facts.attack_cost,
            **optional,
        )

    def _write(self, out: Path, done: Sequence[Measurement], more: Sequence[Measurement] = ()) -> None:
        batch_size = self.settings.batch_size
        lines = (
            line
            for row, evaluation in done
            for line in image_lines(row, evaluation, self.image_ids, distances_of(row, evaluation, self.x, batch_size))
        )
        write_lines(out / "images.jsonl", lines)
        write(out / "summary.json", self.summary(done, more))

    def summary(self, done: Sequence[Measurement], more: Sequence[Measurement]) -> Summary:
        """The contents of summary.json."""
        checked = _checked((*done, *more))
        return Summary(
            schema_version=1,
            seed=self.settings.seed,
            images=len(self.x),
            draws=self.settings.draws,
            complete=len(done) == len(self.rows),
            weights=self.weights,
            config=self.settings.model_dump(mode="json"),
            environment=environment(self.device),
            peak_memory=peak_memory(self.device),
            results=tuple(result_of(row, evaluation, self.settings) for row, evaluation in done),
            paired=tuple(pairs_of(done)),
            budget=self.budget,
            diagnostics=tuple(probe_of(row, evaluation, self.settings) for row, evaluation in more),
            looked_for=diagnostics.looked_for(checked),
            flags=tuple(diagnostics.flags(checked)),
        )


def _checked(rows: Sequence[Measurement]) -> list[diagnostics.Measured]:
    """The rows as they are looked through for signs of a broken evaluation."""
    return [probes.measured(row.model_name, row.attack_config, row.threat, evaluation) for row, evaluation in rows]
