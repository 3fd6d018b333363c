"""Of the record: the summaries of reduced presets, and what names the run of each preset."""

import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from record.digests import Entries

from benchmarks import config as configs
from benchmarks.config.bench import BenchConfig

_AUTOATTACK = (
    "[{kind: autoattack, version: custom, attacks: [apgd-ce], iterations: 3, eot: 2,"
    " threat: {norm: Linf, epsilon: 0.1}}]"
)

PRESETS: dict[str, tuple[str, ...]] = {
    "bench fashion-mnist/bench": ("data.images=6", "draws=3", "batch_size=4", "attacks.0.steps=3", "attacks.0.eot=2"),
    "bench fashion-mnist/autoattack_random": ("data.images=4", "draws=2", f"attacks={_AUTOATTACK}"),
    "certify fashion-mnist/certify": ("data.images=2", "n=40", "n0=20"),
}


def presets() -> Entries:
    for command, overrides in PRESETS.items():
        yield f"preset {command}", lambda command=command, overrides=overrides: _summary(command.split(), overrides)


def identities() -> Entries:
    """What names a run of each preset and tells it from others: every key and its order."""
    for path in sorted(configs.configs_folder().rglob("*.yaml")):
        name = str(path.relative_to(configs.configs_folder()).with_suffix(""))
        with contextlib.suppress(configs.ConfigError):  # a preset of another command
            settings = configs.load(BenchConfig, name)
            chosen = json.dumps(settings.model_dump(mode="json", exclude={"audit", "pictures"}, exclude_defaults=True))
            yield f"identity {name}", lambda chosen=chosen: hashlib.sha256(chosen.encode()).hexdigest()[:16]


def _summary(command: list[str], overrides: tuple[str, ...]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        arguments = [part for override in overrides for part in ("--set", override)]
        subprocess.run(
            [sys.executable, "-m", "purify", *command, "--out", str(out), "--device", "cpu", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        summary, lines = json.loads((out / "summary.json").read_text()), (out / "images.jsonl").read_text()
    return hashlib.sha256((json.dumps(_timeless(summary), sort_keys=True) + lines).encode()).hexdigest()[:16]


_TIMES = ("seconds", "environment", "peak_memory", "version")


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {name: _timeless(of) for name, of in value.items() if name not in _TIMES}
    return [_timeless(of) for of in value] if isinstance(value, list) else value
