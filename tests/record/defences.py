"""Of the record: purified images and gradients of every grid, solver, gradient mode and scheme."""

from collections.abc import Callable

import torch
from record.digests import Entries, digest
from torch import Tensor

import benchmarks
import purify
from benchmarks import datasets

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
