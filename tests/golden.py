"""Recorded outputs of the official implementations (tests/data), and networks of ours with the same weights."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from purify.networks import build

FOLDER = Path(__file__).parent / "data"


def recorded(name):
    return load_file(FOLDER / f"{name}.io.safetensors")


def network(name):
    """The network `name` in evaluation mode, every tensor filled by its rule under its official name."""
    description = json.loads((FOLDER / f"{name}.json").read_text())
    module = build(description["architecture"], description["config"])
    made = module.state_dict()
    weights = {
        key: made[key] if entry["rule"] is None else _fill(*entry["rule"], entry["shape"])
        for key, entry in description["state_dict"].items()
    }
    module.load_state_dict(weights, strict=True)
    return module.eval().requires_grad_(False)


def _fill(j, offset, scale, shape):
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    h = torch.sin((i + 1) * 12.9898 + (j + 1) * 78.233) * 43758.5453
    return (offset + scale * (2 * (h - h.floor()) - 1)).reshape(shape).float()


def relative_error(a, b):
    """Norm of the difference over the norm of `b`."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())
