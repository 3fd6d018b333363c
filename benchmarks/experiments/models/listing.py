"""`purify models list`: what is known, what is here, and which packaged configurations use it."""

from collections import Counter

from rich.table import Column, Table

from benchmarks import config as configs
from benchmarks.experiments.models.names import megabytes
from purify.zoo import packaged_score_models, registry
from purify.zoo.folders import models_folder

_PACKAGED_LICENCE = "MIT"  # as purify/zoo/weights/README.md says


def overview() -> Table:
    """The packaged score models and every entry of the registry, and which packaged configurations name them."""
    whole = [Column(name, no_wrap=True) for name in ("name", "kind", "size", "here")]
    table = Table(
        *whole, "licence", "used by", title=f"models in {models_folder()}; configurations that use them, by folder"
    )
    rows = [
        (name, "score", megabytes(file.stat().st_size), "packaged", _PACKAGED_LICENCE)
        for name, file in packaged_score_models().items()
    ]
    for entry in registry.entries().values():
        size = "unknown" if entry.size is None else megabytes(entry.size)
        rows.append((entry.name, entry.kind, size, "yes" if registry.is_here(entry) else "no", entry.licence))
    for row in rows:
        folders = Counter(name.partition("/")[0] for name in used_by(row[0]))
        table.add_row(*row, ", ".join(f"{count} {folder}" for folder, count in folders.items()))
    return table


def used_by(name: str) -> list[str]:
    """The packaged configurations whose score model it is."""
    folder = configs.configs_folder()
    experiments = {
        str(file.relative_to(folder).with_suffix("")): configs.read(file).get("score")
        for file in sorted(folder.rglob("*.yaml"))
    }
    return [
        config
        for config, score in experiments.items()
        if name in (score, score.get("name") if isinstance(score, dict) else None)
    ]
