"""What DiffPure's own conventions (discrete noising, float32 times, integer labels) change in the purified images."""

import copy
import math

import torch
from torch import Tensor, nn

from benchmarks.experiments.setup import Setup
from benchmarks.runs.schema.audit import ConventionRow
from purify import DiffPure


@torch.no_grad()
def measure(setup: Setup, keys: Tensor, count: int) -> list[ConventionRow]:
    """The first `count` images at t* = 0.1 (or the network's largest time) in 100 equal steps: a row for each
    convention, all with the same keys.
    """
    score, batch_size = setup.score, setup.settings.batch_size
    t_star, steps = math.floor(1000 * min(0.1, score.t_max)) / 1000, 100
    variants = {
        "continuous": DiffPure(score, t_star, steps),
        "float32 times, last step shortened": DiffPure(score, t_star, steps, grid="diffpure"),
        "discrete noising": DiffPure(score, t_star, steps, noising="discrete"),
    }
    if score.time_label == "t" and score.label_rounding is None:
        integer = copy.deepcopy(score)
        integer.network = _IntegerLabels(integer.network, integer.time_scale, integer.time_offset)
        variants["integer labels"] = DiffPure(integer, t_star, steps, grid="diffpure")
        variants["all three"] = DiffPure(integer, t_star, steps, grid="diffpure", noising="discrete")

    images, labels = {}, {}
    for name, purifier in variants.items():
        batches = zip(torch.split(setup.x[:count], batch_size), torch.split(keys[:count], batch_size), strict=True)
        purified = [purifier(x, k) for x, k in batches]
        images[name], labels[name] = (
            torch.cat(purified),
            torch.cat([setup.classifier(part).argmax(1) for part in purified]),
        )
    return [
        ConventionRow(
            convention=name,
            t_star=t_star,
            steps=steps,
            images=count,
            accuracy=float((labels[name] == setup.y[:count]).double().mean()),
            mean_change=float((images[name] - images["continuous"]).abs().mean()),
            predictions_changed=float((labels[name] != labels["continuous"]).double().mean()),
        )
        for name in variants
    ]


class _IntegerLabels(nn.Module):
    """The network with the times that a chain of 1,000 steps would see from DiffPure: label floor(1000 t), in float32,
    means t = (label + 1) / 1000.
    """

    def __init__(self, network: nn.Module, scale: float, offset: float):
        super().__init__()
        self.network, self.scale, self.offset = network, scale, offset

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        t = ((1000 * ((labels - self.offset) / self.scale)).floor() + 1) / 1000
        output: Tensor = self.network(x, self.scale * t + self.offset)
        return output
