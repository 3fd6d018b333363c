"""Is a configuration right? Everything that can be said of one without running it, at once."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import datasets
from benchmarks.classifiers.files import MissingWeights
from benchmarks.config import files
from benchmarks.config.bench import BenchConfig, ClassifierConfig, DataConfig, ScoreConfig
from benchmarks.config.certify import CertifyConfig
from benchmarks.config.presets import Command, command_of
from benchmarks.config.sections import Section, validate
from benchmarks.config.sweep import load_compare, load_sweep
from benchmarks.config.train import TrainConfig
from benchmarks.datasets import DatasetError
from purify import ScoreModel, plugins
from purify.zoo import registry

Part = TypeVar("Part")


class _NotHereError(ValueError):
    """Data or weights that are no mistake of the configuration's."""


@dataclass
class Verdict:
    """What was found.

    Attributes:
        command: whose configuration it is.
        problems: what that command would refuse, one a line.
        missing: data and weights that are not here; what depends on them could not be checked.
    """

    command: Command
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def attempt(self, what: Callable[[], Part], where: str = "") -> Part | None:
        """What `what` gives; what it raises of a user's values is noted, after `where`."""
        try:
            return what()
        except (MissingWeights, _NotHereError) as error:
            _note(self.missing, str(error))
        except ValueError as error:
            _note(self.problems, *(f"{where}{line}" for line in str(error).splitlines()))
        return None


def _note(among: list[str], *lines: str) -> None:
    among += [line for line in lines if line not in among]


def check(config: str, overrides: list[str] | None = None) -> Verdict:
    """Checks a configuration without running it; weights and data that are not here are no mistake.

    Args:
        config: see `benchmarks.config.find`.
        overrides: "dotted.key=value" strings.

    Raises:
        ConfigError: there is no such file, or it is no YAML.
    """
    values = files.load_values(config, overrides)
    verdict = Verdict(command_of(values))
    parts = _Parts(verdict)
    for where, settings in _settings(config, overrides, values, verdict):
        match settings:
            case BenchConfig():
                parts.check_bench(settings, where)
            case CertifyConfig():
                parts.load_all(settings.data, settings.classifier, settings.score)
            case TrainConfig():
                for name in (settings.data.train, settings.data.test):
                    parts.check_data(name, settings.data.root)
    return verdict


def _settings(
    config: str, overrides: list[str] | None, values: dict[str, Any], verdict: Verdict
) -> Iterator[tuple[str, Section]]:
    """The settings that are as they should be by themselves, each with what problems of theirs begin with."""
    match verdict.command:
        case "train":
            kind: type[Section] = TrainConfig
        case "certify":
            kind = CertifyConfig
        case "sweep" | "compare":
            load = load_sweep if verdict.command == "sweep" else load_compare
            plan = verdict.attempt(lambda: load(config, overrides))
            for point in plan.points if plan else ():
                settings = verdict.attempt(partial(getattr, point, "settings"), f"{point.name}: ")
                if settings is not None:
                    yield f"{point.name}: ", settings
            return
        case _:
            kind = BenchConfig
    settings = verdict.attempt(lambda: validate(kind, values))
    if settings is not None:
        yield "", settings


class _Parts:
    """Data and models of several settings, each looked for once."""

    def __init__(self, verdict: Verdict):
        self.verdict = verdict
        self._found: dict[str, Any] = {}

    def check_bench(self, settings: BenchConfig, where: str) -> None:
        """Also what a purifier's constructor says, where its score model is here."""
        score = self.load_all(settings.data, settings.classifier, settings.score)
        for attack in settings.attacks:
            changed = self.verdict.attempt(
                partial(settings.purifier.updated, attack.surrogate),
                f"{where}attack {attack.label!r}, surrogate: ",
            )
            if score is not None and changed is not None:
                begin = f"{where}attack {attack.label!r}: " if attack.surrogate or attack.gradient else where
                self.verdict.attempt(partial(changed.build, score, settings.seed, attack.gradient), begin)
        if score is not None:
            self.verdict.attempt(lambda: settings.purifier.build(score, settings.seed), where)

    def load_all(self, data: DataConfig, classifier: ClassifierConfig, score: ScoreConfig | None) -> ScoreModel | None:
        """Looks for all three; the score model where it is here."""
        self.check_data(data.name, data.root)
        self._once(classifier, lambda: _present(classifier.name, classifier.load))
        return None if score is None else self._once(score, lambda: _score(score))

    def check_data(self, name: str, root: str | None) -> None:
        """The name is right or wrong; that its files are not here, or not whole, is no fault of a configuration's."""
        try:
            datasets.check_name(name)
        except DatasetError as error:
            _note(self.verdict.problems, f"data.name: {error}")
            return
        self._once(DataConfig(name=name, images=1, root=root), lambda: _data(name, root))

    def _once(self, settings: Section, load: Callable[[], Part]) -> Part | None:
        key = f"{type(settings).__name__} {json.dumps(settings.model_dump(mode='json'))}"
        if key not in self._found:
            self._found[key] = self.verdict.attempt(load)
        found: Part | None = self._found[key]
        return found


def _data(name: str, root: str | None) -> None:
    try:
        DataConfig(name=name, images=1, root=root).load()
    except DatasetError as error:
        raise _NotHereError(str(error)) from error


def _score(settings: ScoreConfig) -> ScoreModel:
    entry = registry.entries().get(settings.name)
    if entry is not None and not registry.is_here(entry):
        raise _NotHereError(
            f"the weights {settings.name!r} are not at {registry.path_of(entry)}: {registry.how_to_get(entry)}"
        )
    return _present(settings.name, settings.load)


def _present(name: str, load: Callable[[], Part]) -> Part:
    """What `load` gives. Raises _NotHereError where `name` is the path of a file that is not here."""
    if not name.startswith(plugins.PREFIX) and Path(name).suffix == ".safetensors" and not Path(name).is_file():
        raise _NotHereError(f"no weight file at {name}")
    return load()
