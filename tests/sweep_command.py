"""A small configuration for `purify sweep`, its axes, and the names of its points."""

import yaml

TINY = {
    "data": {"name": "fashion-mnist-embedded", "images": 4},
    "classifier": "fashion-mnist",
    "score": "fashion-mnist",
    "purifier": {"t_star": 0.1, "steps": 2, "grid": "quadratic"},
    "draws": 2,
    "batch_size": 2,
    "pictures": 0,
    "attacks": [{"kind": "pgd", "threat": {"norm": "Linf", "epsilon": 0.1}, "steps": 1, "models": ["defended"]}],
}
AXES = {"purifier.t_star": [0.05, 0.15], "purifier.steps": [1, 2]}
NAMES = ["t_star=0.05,steps=1", "t_star=0.05,steps=2", "t_star=0.15,steps=1", "t_star=0.15,steps=2"]


def write(path, **changes):
    path.write_text(yaml.safe_dump(TINY | changes, sort_keys=False))
    return path
