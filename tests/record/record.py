"""A record of results, bit for bit: `python tests/record/record.py write FILE`, then, after a change that must not
alter a number, `... check FILE`.

Hashes cover purified images and gradients of every scheme, solver and gradient mode, all points at which every attack
evaluates its model, and the summaries of reduced presets. They hold on one kind of processor and one version of torch:
write and check on the same machine.
"""

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in another order are other numbers; before torch is imported

import torch
from torch import Tensor, nn

import attacks
import benchmarks
import purify
from benchmarks import config as configs
from benchmarks import datasets
from benchmarks.config.bench import BenchConfig

torch.set_num_threads(1)
RECORD = Path(__file__).with_name("record.json")

Entries = Iterator[tuple[str, Callable[[], str]]]


def environment() -> dict[str, str]:
    """What the hashes hold for."""
    return {
        "torch": torch.__version__.split("+")[0],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(line.split("\t: ", 1) for line in lines if "\t: " in line)
    return " ".join(
        facts.get(name, "?").strip()
        for name in ("vendor_id", "cpu family\t", "model\t\t", "cpu family", "model")
        if name in facts
    )


def digest(*tensors: Tensor | None) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            found.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


# -- the defence
# --------------------------------------------------------------------------------


SOLVERS: dict[str, dict[str, object]] = {
    "torchsde": {"solver": "torchsde"},
    "torchsde-milstein": {"solver": {"name": "torchsde", "method": "milstein"}},
    "torchsde-srk": {"solver": {"name": "torchsde", "method": "srk"}},
    "torchdiffeq": {"solver": "torchdiffeq"},
    "torchdiffeq-rk4": {"solver": {"name": "torchdiffeq", "method": "rk4"}, "steps": 8},
    "ddim": {"solver": "ddim"},
    "ancestral": {"solver": "ancestral"},
    "heun": {"solver": "heun", "steps": 5},
    "heun-churn": {"solver": {"name": "heun", "S_churn": 2.0}, "steps": 5},
    "dpm++": {"solver": "dpm++"},
    "dpm++-sde": {"solver": {"name": "dpm++", "eta": 1.0}},
    "exponential": {"solver": "exponential"},
    "predictor-corrector": {"solver": "predictor-corrector"},
}


def _score() -> purify.ScoreModel:
    return purify.load_score_model("fashion-mnist")


def _images(count: int) -> tuple[Tensor, Tensor]:
    data = datasets.load("fashion-mnist-embedded")
    return data.images[:count].float() / 255, data.labels[:count]


def _purified(purifier: Callable[..., Tensor]) -> str:
    x, _ = _images(3)
    keys = purify.noise_keys(0, range(3), 5)
    with torch.no_grad():
        bare = purifier(x, keys=keys)
        fresh = purifier(x)
    inputs = x.clone().requires_grad_()
    purified = purifier(inputs, keys=keys)
    weights = torch.linspace(-1, 1, purified.numel()).reshape(purified.shape)
    (gradient,) = torch.autograd.grad((purified * weights).sum(), inputs)
    return digest(bare, fresh, purified, gradient)


def defences() -> Entries:
    score = _score()
    for grid in ("uniform", "quadratic", "karras", "log_snr", "diffpure"):
        yield f"grid {grid}", lambda grid=grid: _purified(purify.DiffPure(score, 0.1, 4, grid=grid))
    for name, options in SOLVERS.items():
        for gradient in ("exact", "backprop", "adjoint", "bpda"):
            settings = {"t_star": 0.1, "steps": 4, "gradient": gradient, **options}
            try:
                purifier = purify.DiffPure(score, **settings)
            except ValueError:
                continue
            yield f"solver {name}, {gradient}", lambda purifier=purifier: _purified(purifier)
    schemes = {
        "ADP": lambda: purify.ADP(score, 3),
        "GDMP": lambda: purify.GDMP(score, 0.036, 4, passes=2, scale=5000.0),
        "Gradual": lambda: purify.Gradual(score, (30, 50), (3, 5)),
        "Langevin": lambda: purify.Langevin(score, 4),
        "Likelihood": lambda: purify.Likelihood(score, 3),
        "OneShot": lambda: purify.OneShot(score),
        "PurifyPlusPlus": lambda: purify.PurifyPlusPlus(score, 0.1, 5),
        "Resized": lambda: purify.Resized(purify.DiffPure(score, 0.1, 3), (28, 28)),
        "Sequential": lambda: purify.Sequential([purify.DiffPure(score, 0.05, 2)] * 2, seed=3),
    }
    for name, make in schemes.items():
        yield f"scheme {name}", lambda make=make: _purified(make())

    classifier = benchmarks.load_classifier("fashion-mnist")

    def defended() -> str:
        x, _ = _images(4)
        keys = purify.noise_keys(1, range(4), 0)
        model = purify.DefendedClassifier(purify.DiffPure(score, 0.1, 3), classifier, copies=2, average="probabilities")
        fixed = purify.FixedRandomness(model, 7)
        single = purify.DefendedClassifier(purify.DiffPure(score, 0.1, 3), classifier)
        inside = single.trajectory(x, keys, 3, True)
        return digest(
            model(x),
            model(x, keys=keys),
            model.predict(x, 5, keys),
            fixed(x),
            inside.result,
            inside.noised,
            inside.states,
            inside.estimates,
        )

    def smoothed() -> str:
        x, _ = _images(2)
        keys = purify.noise_keys(1, range(2), 0)
        model = purify.DenoisedSmoothing(score, classifier, 0.25)
        return digest(model(x, keys=keys), model(x))

    yield "defended", defended
    yield "smoothed", smoothed


# -- attacks
# --------------------------------------------------------------------------------


class _Small(nn.Module):
    """A smooth classifier of 5 classes with noise of its keys on the way, and the states and stages that attacks from
    inside ask for.
    """

    def __init__(self, noise: float):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(24, 192, generator=generator) / 8, requires_grad=False)
        self.second = nn.Parameter(torch.randn(5, 24, generator=generator), requires_grad=False)
        self.noise = noise
        self.seen = hashlib.sha256()

    def purifier(self, x: Tensor, keys: Tensor) -> Tensor:
        draws = torch.sin(torch.arange(192) * (1.0 + (keys % 1009)[:, None] * 0.37)).reshape(x.shape)
        return x + self.noise * draws.to(x.dtype)

    def classifier(self, x: Tensor) -> Tensor:
        return torch.tanh((x - 0.5).flatten(1) @ self.first.to(x.dtype).T * 2) @ self.second.to(x.dtype).T

    def logits(self, x: Tensor, keys: Tensor) -> Tensor:
        for tensor in (x, keys):
            self.seen.update(tensor.detach().contiguous().numpy().tobytes())
        return self.classifier(self.purifier(x, keys))


class _Keyed(_Small):
    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        return self.logits(x, keys)

    def trajectory(self, x: Tensor, keys: Tensor, points: int, estimates: bool) -> "_Inside":
        noisy = self.purifier(x, keys)
        shares = torch.linspace(0, 1, points)
        states = torch.stack([noisy + share * 0.3 * (torch.tanh(x) - noisy) for share in shares])
        noised = torch.stack([x + (1 - share) * (noisy - x) for share in shares])
        inside = _Inside()
        inside.result, inside.noised, inside.states = self.logits(x, keys), noised, states
        inside.estimates = torch.stack([self.classifier(state) for state in states[:-1]]) if estimates else None
        return inside


class _Inside:
    pass


class _Plain(_Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x, torch.zeros(len(x), dtype=torch.int64))


class _Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 4, 3, padding=1)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.net(x))


def attack_settings() -> dict[str, object]:
    linf, l2, near = attacks.Linf(0.05), attacks.L2(0.6), attacks.FeatureDistance(_Features(), 0.2)
    found: dict[str, object] = {}
    for norm, threat in (("Linf", linf), ("L2", l2)):
        found |= {
            f"PGD {norm}": attacks.PGD(threat, steps=4, eot=3),
            f"PGD {norm} restarts": attacks.PGD(
                threat,
                steps=3,
                eot=2,
                restarts=3,
                momentum=0.5,
                schedule="cosine",
                stop_draws=2,
                loss="margin",
                batch_size=5,
            ),
            f"APGD {norm}": attacks.APGD(threat, iterations=12, eot=2),
            f"APGD {norm} restarts": attacks.APGD(
                threat, iterations=9, eot=2, restarts=2, target_classes=2, stop_draws=2, batch_size=7
            ),
            f"FAB {norm}": attacks.FAB(threat, iterations=4, eot=2, target_classes=2),
            f"FAB {norm} restarts": attacks.FAB(
                threat, iterations=3, eot=1, target_classes=0, restarts=2, stop_draws=2
            ),
            f"Square {norm}": attacks.Square(threat, queries=80, eot=2),
            f"Square {norm} labels": attacks.Square(
                threat, queries=90, eot=2, answers="labels", restarts=2, stop_draws=2
            ),
            f"SPSA {norm}": attacks.SPSA(threat, iterations=4, restarts=2, stop_draws=2),
            f"DeviatedReconstruction {norm}": attacks.DeviatedReconstruction(
                threat, iterations=6, eot=2, restarts=2, estimates=0.5, stop_draws=2
            ),
            f"DiffHammer {norm}": attacks.DiffHammer(threat, iterations=6, eot=3, restarts=2, stop_draws=2),
            f"EOTAutoAttack {norm}": attacks.EOTAutoAttack(threat, iterations=6, eot=2, queries=60),
            f"Strongest {norm}": attacks.Strongest(threat, 400, eot=2),
            f"AutoAttack {norm}": attacks.AutoAttack(
                threat, "custom", ("apgd-ce", "square"), iterations=4, eot=2, queries=20
            ),
        }
    found |= {
        "StAdv": attacks.StAdv(iterations=5, eot=2, restarts=2, stop_draws=2),
        "ReColorAdv": attacks.ReColorAdv(iterations=5, eot=2, restarts=2, stop_draws=2),
        "LowFrequency": attacks.LowFrequency(near, iterations=5, eot=2, restarts=2, stop_draws=2),
        "PerceptualPGD": attacks.PerceptualPGD(near, iterations=4, eot=2, restarts=2, stop_draws=2, cg_iterations=3),
    }
    return found


def attacked() -> Entries:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(6, 3, 8, 8, generator=generator)
    keys = torch.tensor([5, -3, 2**60, 0, 11, 12])

    def run(attack: Callable[..., Tensor], model: _Small, **options: object) -> str:
        with torch.no_grad():
            y = model.classifier(x).argmax(1)
            y[0] = (y[0] + 1) % 5  # one image that is wrong as it is
        if options.pop("targeted", False):
            options["targets"] = (y + 2) % 5
        if options.pop("started", False):
            options["start"] = (x + 0.01).clamp(0, 1)
        counted: list[tuple[int, int]] = []
        options |= {"progress": lambda done, total: counted.append((done, total))}
        model.seen = hashlib.sha256()
        with attacks.count_cost() as cost:
            result = attack(model, x, y, keys=keys, **options)
        return (
            f"{digest(result)} {model.seen.hexdigest()[:16]} {cost.forward} {cost.backward}"
            f" {hashlib.sha256(str(counted).encode()).hexdigest()[:8]}"
        )

    for name, attack in attack_settings().items():
        yield f"attack {name}, random", lambda attack=attack: run(attack, _Keyed(0.1))
        if "restarts" not in name and not name.startswith(("Deviated", "DiffHammer")):
            yield f"attack {name}, plain", lambda attack=attack: run(attack, _Plain(0.0))
        if not name.startswith(("AutoAttack",)):
            yield f"attack {name}, targeted", lambda attack=attack: run(attack, _Keyed(0.1), targeted=True)
        if not name.startswith(("AutoAttack", "StAdv", "ReColor", "LowFrequency")) and "restarts" not in name:
            yield f"attack {name}, started", lambda attack=attack: run(attack, _Keyed(0.1), started=True)
    nearest = attacks.FAB(attacks.L2(0.6), iterations=4, eot=2, target_classes=2)
    yield (
        "attack FAB, minimal",
        lambda: run(lambda *a, **k: torch.cat([part.flatten() for part in nearest.minimal(*a, **k)]), _Keyed(0.05)),
    )


# -- presets
# --------------------------------------------------------------------------------

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


# -- the command
# --------------------------------------------------------------------------------


def entries() -> Entries:
    yield from defences()
    yield from attacked()
    yield from identities()
    yield from presets()


def measure(only: str) -> dict[str, str]:
    found = {}
    for name, make in entries():
        if only in name:
            found[name] = make()
            print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("write", "check"))
    parser.add_argument("file", nargs="?", type=Path, default=RECORD)
    parser.add_argument("--only", default="", help="names that hold this text")
    options = parser.parse_args()
    found = measure(options.only)
    if options.what == "write":
        options.file.write_text(json.dumps({"environment": environment(), "results": found}, indent=1) + "\n")
        return
    record = json.loads(options.file.read_text())
    if record["environment"] != environment():
        sys.exit(
            f"the record was written on {record['environment']}, this is {environment()}: write one here, from the"
            " revision to compare with"
        )
    wanted = {name: value for name, value in record["results"].items() if options.only in name}
    changed = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    for name in changed:
        print(f"{name}: {wanted.get(name)} -> {found.get(name)}")
    print(f"{len(wanted) - len(changed)} of {len(wanted)} results equal")
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()
