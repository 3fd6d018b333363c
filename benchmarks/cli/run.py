"""What every command does that runs an experiment: its configuration, its device, its folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml

from benchmarks.cli.session import Session

if TYPE_CHECKING:
    import torch

    from benchmarks.config import Section

Settings = TypeVar("Settings", bound="Section")


@dataclass
class Run:
    """An experiment's run.

    Attributes:
        session: of the call.
        kind: what its folder is called where no name is given.
        out: the folder that was asked for; None for a new one of its own name.
        device_name: as `--device` gives it.
        resume: whether it goes on with the run in `out`.
    """

    session: Session
    kind: str
    out: Path | None
    device_name: str | None
    resume: bool = False

    @cached_property
    def device(self) -> "torch.device":
        """The device. Raises RunError where it is not there."""
        from benchmarks import runs

        device = runs.pick_device(self.device_name)
        if self.session.verbose:
            facts = (f"{name} {value}" for name, value in runs.environment(device).items())
            self.session.detail(", ".join(facts))
        return device

    @property
    def begun(self) -> Path:
        """The folder to go on in. Raises ValueError where none is named."""
        if self.out is None:
            raise ValueError("--resume needs --out: the folder of the run to go on with")
        return self.out

    def load(self, kind: type[Settings], config: str, overrides: list[str]) -> Settings:
        """The checked configuration. Raises ConfigError for anything wrong in it, and where a run that is to be gone on
        with has another.
        """
        from benchmarks import config as configs
        from benchmarks.config.presets import command_of

        try:
            settings = configs.load(kind, config, overrides)
        except configs.ConfigError as error:
            command = command_of(configs.load_values(config, overrides))
            if command == self.kind or {command, self.kind} <= {"bench", "audit", "rivals"}:
                raise
            raise configs.ConfigError(f"{config} is a configuration for `purify {command}`") from error
        if self.session.verbose:
            self.session.detail(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        if self.resume:
            configs.check_same(settings, self.begun / "config.yaml")
        return settings

    def make_folder(self) -> Path:
        """The run's folder: a new one, or the one to go on in. Raises RunError where it cannot be used."""
        from benchmarks import runs

        return self.begun if self.resume else runs.make_folder(self.out, self.kind)

    @contextmanager
    def folder(self, write_config: Callable[[Path], None] | None = None) -> Iterator[Path]:
        """The run's folder, locked.

        Args:
            write_config: writes the configuration of a run that can be gone on with into a new folder's config.yaml.
        """
        from benchmarks import runs

        folder = self.make_folder()
        with runs.locked(folder):
            if write_config is None:
                yield folder
                return
            if not self.resume:
                write_config(folder / "config.yaml")
            with self.said_how_to_go_on(folder):
                yield folder

    @contextmanager
    def said_how_to_go_on(self, folder: Path) -> Iterator[None]:
        """Tells who stops the run how to resume it."""
        try:
            yield
        except KeyboardInterrupt:
            self.session.error(f"stopped; go on with the same command and --out {folder} --resume")
            raise
