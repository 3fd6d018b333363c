"""The summary of `purify bench`, and what it says of every image."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.config.bench import BenchConfig
from benchmarks.evaluation.evaluate import ATTACK_DRAW
from benchmarks.evaluation.result import Evaluation
from benchmarks.evaluation.statistics import paired_difference
from benchmarks.experiments.bench_rows import Measurement, Row
from benchmarks.runs.schema import ImageLine, Paired, Probe, Result
from benchmarks.runs.schema.bench import Seeds

_PURIFIER_FACTS = ("scheme", "t_star", "steps", "solver")


def result_of(row: Row, evaluation: Evaluation, settings: BenchConfig) -> Result:
    """A row of results."""
    return Result(**_result(row, evaluation, settings))


def probe_of(row: Row, evaluation: Evaluation, settings: BenchConfig) -> Probe:
    """A row that a diagnosis adds."""
    return Probe(**_result(row, evaluation, settings), images=len(evaluation.labels))


def _result(row: Row, evaluation: Evaluation, settings: BenchConfig) -> dict[str, Any]:
    attack, purifier, defended = row.attack_config, settings.purifier, row.model_name == "defended"
    # else it is a verdict on another model
    own = evaluation.own if attack is None or attack.through == "deployed" else None
    return {
        "model": row.model_name,
        "attack": row.attack_name,
        "threat": str(row.threat) if row.threat else "none",
        "single": evaluation.single,
        "worst_of": evaluation.worst_of,
        "majority": evaluation.majority or None,
        "own_verdict": own,
        "reached": evaluation.reached,
        "undefined": evaluation.undefined,
        "seconds": round(evaluation.seconds, 3),
        "network_evaluations": evaluation.network_evaluations,
        "attack_cost": evaluation.attack_cost,
        "gradient": _gradient(row, settings),
        **{key: getattr(purifier, key, None) if defended else None for key in _PURIFIER_FACTS},
        "purifier": purifier.model_dump(mode="json") if defended else None,
        **(attack.facts(defended) if attack else {"iterations": 0, "eot": 0, "restarts": 0}),
        "randomness": row.randomness,
        "warnings": tuple(sorted(set(evaluation.warnings))),
        "seeds": Seeds(
            evaluation=settings.seed,
            attack=settings.seed if attack else None,
            attack_draw=ATTACK_DRAW if attack else None,
        ),
    }


def _gradient(row: Row, settings: BenchConfig) -> str | None:
    """The mode in which the purifier was differentiated, None where it was not."""
    attack = row.attack_config
    if row.model_name != "defended":
        return None
    if attack is not None and (attack.through == "classifier" or not attack.white_box):
        return None
    own = attack and (attack.gradient or attack.surrogate.get("gradient"))
    return own or getattr(settings.purifier, "gradient", None)


def pairs_of(done: Iterable[Measurement]) -> Iterator[Paired]:
    """Every attack against the first one of the same threat on the same model: difference of single-draw accuracy,
    image by image.
    """
    references: dict[tuple[str, str], Measurement] = {}
    for row, evaluation in done:
        if row.attack_config is None:
            continue
        reference_row, reference = references.setdefault((row.model_name, str(row.threat)), (row, evaluation))
        if reference_row is not row:
            difference = paired_difference(evaluation.per_image.numpy(), reference.per_image.numpy())
            yield Paired(
                model=row.model_name,
                attack=row.attack_name,
                reference=reference_row.attack_name,
                through=row.attack_config.through,
                target=row.attack_config.target,
                value=difference.value,
                ci95=difference.ci95,
                p_value=difference.p_value,
            )


def image_lines(row: Row, evaluation: Evaluation, image_ids: Tensor, distances: Sequence[float]) -> Iterator[ImageLine]:
    """What images.jsonl says of a row; `image_ids` (n,), and n distances of adversarial images from clean ones."""
    columns = (image_ids.tolist(), evaluation.labels.tolist(), evaluation.predictions.tolist(), distances)
    for image, label, labels, distance in zip(*columns, strict=True):
        yield ImageLine(
            image=image,
            label=label,
            model=row.model_name,
            attack=row.attack_name,
            predictions=tuple(labels),
            distance=distance,
        )


@torch.no_grad()
def distances_of(row: Row, evaluation: Evaluation, x: Tensor, batch_size: int) -> list[float]:
    """How far the row's images are from the clean ones `x` (n, c, h, w), in its threat's own measure."""
    if row.threat is None:
        return [0.0] * len(x)
    parts = zip(torch.split(evaluation.x_adv, batch_size), torch.split(x, batch_size), strict=True)
    distances: list[float] = torch.cat(
        [row.threat.distance(x_adv.to(x.device), clean) for x_adv, clean in parts]
    ).tolist()
    return distances
