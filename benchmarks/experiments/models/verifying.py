"""`purify models verify`: size, checksum and a strict load."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.experiments.models.fetching import ZOOS, classifier_files
from purify.score.model import ScoreModel
from purify.zoo import load_score_model, packaged_score_models, registry
from purify.zoo.checkpoint import CheckpointError
from purify.zoo.download import DownloadError, check_file
from purify.zoo.registry import Entry


@dataclass(frozen=True)
class Verdict:
    """What `verify` found of one entry: "ok", "FAIL", or "unchecked" where this package does not load such files."""

    name: str
    state: str
    text: str


def verify(names: Sequence[str]) -> list[Verdict]:
    """Size, checksum and, of score models, a strict load with finite weights; by default of all of the registry that is
    here.

    `names` as for `fetch`; of classifiers the checksum recorded when they were fetched, and the one in torchvision's
    file names.
    """
    if names:
        return [_verify_named(name) for name in names]
    entries = registry.entries().values()
    return [
        _verify(entry)
        for entry in entries
        if registry.is_here(entry) or any(path.exists() for _, path in registry.downloads_of(entry))
    ]


def _verify_named(name: str) -> Verdict:
    if name.partition(":")[0] in ZOOS:
        return _verify_classifier(name)
    return _verify_packaged(name) if name in packaged_score_models() else _verify(registry.find(name))


def _verify_packaged(name: str) -> Verdict:
    try:
        model = load_score_model(name)
    except CheckpointError as error:
        return Verdict(name, "FAIL", str(error))
    return Verdict(
        name, "ok", f"packaged, strict load: {sum(parameter.numel() for parameter in model.parameters()):,} parameters"
    )


def _verify(entry: Entry) -> Verdict:
    try:
        for file, path in registry.downloads_of(entry):
            if path.exists() or not (entry.export or entry.unpack):
                check_file(path, file.size, file.sha256, file.md5)
        if not registry.is_here(entry):
            return Verdict(
                entry.name, "FAIL", f"nothing to load at {registry.path_of(entry)}: {registry.how_to_get(entry)}"
            )
        if entry.kind != "score":
            return Verdict(entry.name, "ok", "size and checksum")
        if entry.export:
            check_file(registry.path_of(entry))
        model = _load_entry(entry)
    except (CheckpointError, DownloadError, FileNotFoundError) as error:
        return Verdict(entry.name, "FAIL", str(error))
    except ValueError as error:
        return Verdict(entry.name, "unchecked", f"size and checksum are right; not loaded: {error}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Verdict(entry.name, "ok", f"size, checksum, strict load: {parameters:,} parameters")


def _verify_classifier(name: str) -> Verdict:
    try:
        for wanted in classifier_files(name):
            sha256 = check_file(wanted.target)
            prefix = re.search(r"-([0-9a-f]{8,64})\.pth$", wanted.target.name)  # torch.hub's convention
            if prefix and not sha256.startswith(prefix.group(1)):
                return Verdict(
                    name,
                    "FAIL",
                    f"{wanted.target} has the SHA-256 {sha256}, not the one that its name begins with: delete it and"
                    " fetch it again",
                )
    except (DownloadError, FileNotFoundError) as error:
        return Verdict(name, "FAIL", str(error))
    return Verdict(name, "ok", "checksum as recorded")


def _load_entry(entry: Entry) -> ScoreModel:
    if entry.config is None:
        return load_score_model(registry.path_of(entry))
    return load_score_model(registry.path_of(entry), entry.architecture, entry.config)
