"""`purify bench`: one configuration, one folder, one table.

A folder holds config.yaml, summary.json, images.jsonl (one line per image and row), batches/ (what is done so far, with the adversarial
images), and figures. Every batch is stored as it is finished, so an interrupted run goes on with what it has.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks import setup
from benchmarks.bench_config import AutoAttackConfig, BenchConfig, PGDConfig
from benchmarks.evaluate import ATTACK_DRAW, Attack, Evaluation, Randomness, evaluate
from benchmarks.runs import RunError, environment, fingerprint, peak_memory, progress_bar, write_text
from benchmarks.statistics import paired_difference

SCHEMA = 1
_PURIFIER_FACTS = ("t_star", "t_end", "steps", "solver", "method", "eta", "grid", "time", "noising", "size")


@dataclass(frozen=True)
class Row:
    """One line of the table: which model is judged under which attack."""

    model_name: str
    model: nn.Module
    attack_config: PGDConfig | AutoAttackConfig | None = None
    attack: Attack | None = None
    attack_model: nn.Module | None = None

    @property
    def attack_name(self) -> str:
        return "none" if self.attack_config is None else self.attack_config.label

    @property
    def randomness(self) -> Randomness:
        """Fixed noise is asked of the defence only: the bare classifier has none."""
        return "fresh" if self.attack_config is None or self.model_name == "undefended" else self.attack_config.randomness


class Bench:
    """A checked experiment, ready to run.

    Args:
        settings: the configuration.
        device: where the models run.

    Raises:
        ConfigError, CheckpointError, DatasetError, ValueError: anything that cannot work, before any work starts.
    """

    def __init__(self, settings: BenchConfig, device: torch.device):
        self.settings = settings
        self.device = device
        self.setup = setup.load(settings, device, settings.data.images)
        self.x, self.y, self.image_ids = self.setup.x, self.setup.y, self.setup.image_ids
        # What a batch depends on: options that keep their default may be added later without making old runs strangers.
        chosen = settings.model_dump(mode="json", exclude={"audit", "pictures"}, exclude_defaults=True)
        self.identity = fingerprint(json.dumps(chosen), *self.setup.weights.values())
        self.rows = list(self._rows())

    def _rows(self) -> Iterable[Row]:
        models: dict[str, nn.Module] = {"undefended": self.setup.classifier, "defended": self.setup.defended()}
        for name, model in models.items():
            yield Row(name, model)
            for attack in self.settings.attacks:
                if name in attack.models and not (name == "undefended" and attack.gradient is not None):
                    attack_model = self.setup.defended(attack.gradient) if attack.gradient is not None else model
                    yield Row(name, model, attack, attack.build(name == "defended"), attack_model)

    def run(self, out: Path, say: Callable[[str], None]) -> tuple[dict[str, Any], list[tuple[Row, Evaluation]]]:
        """Measures every batch that `out` does not hold yet; returns the summary and what it was made from. `say` gets a line per row.

        Raises:
            RunError: `out` holds batches of another configuration or of other weights.
        """
        (out / "batches").mkdir(exist_ok=True)
        done: list[tuple[Row, Evaluation]] = []
        total = len(self.x)
        for number, row in enumerate(self.rows, 1):
            title = f"[{number}/{len(self.rows)}] {row.model_name}, attack {row.attack_name}"
            with progress_bar(title, total) as update:
                parts = [self._batch(out, row, first, update) for first in range(0, total, self.settings.batch_size)]
            evaluation = Evaluation.join(parts)
            done.append((row, evaluation))
            self._write(out, done)
            say(f"{title}: {evaluation.single} % right, {evaluation.seconds:.1f} s")
        return self.summary(done), done

    def _batch(self, out: Path, row: Row, first: int, update: Callable[[int, str], None]) -> Evaluation:
        path = out / "batches" / f"{row.model_name}.{row.attack_name}.{first:06d}.safetensors"
        if path.exists():
            return self._load_batch(path)
        rows = slice(first, first + self.settings.batch_size)
        part = evaluate(
            row.model,
            self.x[rows],
            self.y[rows],
            row.attack,
            self.settings.draws,
            self.settings.seed,
            attack_model=row.attack_model,
            randomness=row.randomness,
            image_ids=self.image_ids[rows],
            batch_size=self.settings.batch_size,
            progress=lambda done, _: update(first + done, ""),
        )
        self._save_batch(path, part)
        return part

    def _save_batch(self, path: Path, part: Evaluation) -> None:
        tensors: dict[str, Tensor] = {"predictions": part.predictions, "labels": part.labels, "x_adv": part.x_adv.contiguous()}
        if part.own_verdict is not None:
            tensors["own_verdict"] = part.own_verdict
        facts = {"identity": self.identity, **{name: getattr(part, name) for name in ("seconds", "network_evaluations", "warnings", "randomness")}}
        temporary = path.with_suffix(f".{os.getpid()}.partial")
        try:
            save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})
            os.replace(temporary, path)
        except SafetensorError as error:  # a full disk, for one
            raise OSError(f"{path} cannot be written: {error}; what is finished is kept, go on with --resume") from error
        finally:
            temporary.unlink(missing_ok=True)

    def _load_batch(self, path: Path) -> Evaluation:
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                predictions, labels, x_adv = (file.get_tensor(name) for name in ("predictions", "labels", "x_adv"))
                own = file.get_tensor("own_verdict") if "own_verdict" in file.keys() else None  # noqa: SIM118 (not a mapping)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is not a whole batch, delete it to have it made again: {error}") from error
        if facts["identity"] != self.identity:
            raise RunError(f"{path} was made with another configuration or other weights; give another --out")
        return Evaluation(predictions, labels, x_adv, facts["seconds"], facts["network_evaluations"], tuple(facts["warnings"]), facts["randomness"], own)

    def _write(self, out: Path, done: list[tuple[Row, Evaluation]]) -> None:
        lines = [json.dumps(line) for row, evaluation in done for line in self._image_lines(row, evaluation)]
        write_text(out / "images.jsonl", "\n".join(lines) + "\n")
        write_text(out / "summary.json", json.dumps(self.summary(done), indent=2) + "\n")

    def _image_lines(self, row: Row, evaluation: Evaluation) -> Iterable[dict[str, Any]]:
        distances = row.attack_config.threat.build().distance(evaluation.x_adv, self.x.cpu()).tolist() if row.attack_config else [0.0] * len(self.x)
        for image, label, labels, distance in zip(self.image_ids.tolist(), evaluation.labels.tolist(), evaluation.predictions.tolist(), distances, strict=True):
            yield {"image": image, "label": label, "model": row.model_name, "attack": row.attack_name, "predictions": labels, "distance": distance}

    def summary(self, done: list[tuple[Row, Evaluation]]) -> dict[str, Any]:
        """The contents of summary.json."""
        return {
            "schema": SCHEMA,
            "seed": self.settings.seed,
            "images": len(self.x),
            "draws": self.settings.draws,
            "complete": len(done) == len(self.rows),
            "weights": self.setup.weights,
            "config": self.settings.model_dump(mode="json"),
            "environment": environment(self.device),
            "peak_memory": peak_memory(self.device),
            "results": [self._result(row, evaluation) for row, evaluation in done],
            "paired": list(_paired(done)),
        }

    def _result(self, row: Row, evaluation: Evaluation) -> dict[str, Any]:
        attack, purifier, defended = row.attack_config, self.settings.purifier, row.model_name == "defended"
        facts = attack.facts(defended) if attack else {"iterations": 0, "eot": 0, "restarts": 0}
        gradient = (attack and attack.gradient) or purifier.gradient
        return {
            "model": row.model_name,
            "attack": row.attack_name,
            "threat": str(attack.threat.build()) if attack else "none",
            "single": evaluation.single.as_dict(),
            "worst_of": {str(n): estimate.as_dict() for n, estimate in evaluation.worst_of.items()},
            "majority": {str(n): estimate.as_dict() for n, estimate in evaluation.majority.items()} or None,
            "own_verdict": evaluation.own.as_dict() if evaluation.own else None,
            "seconds": round(evaluation.seconds, 3),
            "network_evaluations": evaluation.network_evaluations,
            "gradient": gradient if defended else None,
            **{key: getattr(purifier, key) if defended else None for key in _PURIFIER_FACTS},
            **facts,
            "randomness": row.randomness,
            "warnings": sorted(set(evaluation.warnings)),
            "seeds": {"evaluation": self.settings.seed, "attack": self.settings.seed if attack else None, "attack_draw": ATTACK_DRAW if attack else None},
        }


def _paired(done: list[tuple[Row, Evaluation]]) -> Iterable[dict[str, Any]]:
    """Every attack against the first one of the same threat on the same model: difference of single-draw accuracy, image by image."""
    references: dict[tuple[str, str], tuple[Row, Evaluation]] = {}
    for row, evaluation in done:
        if row.attack_config is None:
            continue
        group = (row.model_name, str(row.attack_config.threat.build()))
        reference_row, reference = references.setdefault(group, (row, evaluation))
        if reference_row is not row:
            difference = paired_difference(evaluation.per_image.numpy(), reference.per_image.numpy())
            yield {"model": row.model_name, "attack": row.attack_name, "reference": reference_row.attack_name, **difference.as_dict()}
