"""`purify models list`: what is known, what is here, and which packaged configurations use it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Column, Table

from benchmarks import config as configs
from benchmarks.experiments.models.names import megabytes
from purify.zoo import packaged_score_models, registry
from purify.zoo.folders import models_folder

_PACKAGED_LICENCE = "MIT"  # as purify/zoo/weights/README.md says


@dataclass(frozen=True)
class Known:
    """A packaged score model or an entry of the registry: its size in bytes where it is known, whether it is here
    ("packaged", "yes", "no"), and the packaged configurations that use it.
    """

    name: str
    kind: str
    size: int | None
    here: str
    licence: str
    used_by: tuple[str, ...]


def known() -> list[Known]:
    """The packaged score models and every entry of the registry, and which packaged configurations name them."""
    packaged = [
        Known(name, "score", file.stat().st_size, "packaged", _PACKAGED_LICENCE, tuple(used_by(name)))
        for name, file in packaged_score_models().items()
    ]
    entries = [
        Known(
            entry.name,
            entry.kind,
            entry.size,
            "yes" if registry.is_here(entry) else "no",
            entry.licence,
            tuple(used_by(entry.name)),
        )
        for entry in registry.entries().values()
    ]
    return packaged + entries


def overview(models: Sequence[Known]) -> Table:
    """A table of `known()`."""
    whole = [Column(name, no_wrap=True) for name in ("name", "kind", "size", "here")]
    table = Table(
        *whole, "licence", "used by", title=f"models in {models_folder()}; configurations that use them, by folder"
    )
    for model in models:
        folders = Counter(name.partition("/")[0] for name in model.used_by)
        table.add_row(
            model.name,
            model.kind,
            "unknown" if model.size is None else megabytes(model.size),
            model.here,
            model.licence,
            ", ".join(f"{count} {folder}" for folder, count in folders.items()),
        )
    return table


def used_by(name: str) -> list[str]:
    """The packaged configurations whose score model it is."""
    experiments = {config: configs.read(configs.find(config)).get("score") for config in configs.known()}
    return [
        config
        for config, score in experiments.items()
        if name in (score, score.get("name") if isinstance(score, dict) else None)
    ]
