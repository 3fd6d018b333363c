"""The path that is audited, in every gradient mode and in float64: the truth that the modes are compared with.

The truth is a plain float64 Euler loop, written here without the purifier, its solver or torchsde, on the same noise,
differentiated by autograd through every step.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.losses import margin
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError
from benchmarks.experiments import setup
from benchmarks.experiments.published_adjoint import PublishedAdjoint
from purify import DiffPure, ScoreModel, noise_keys, solvers
from purify.gradients import MODES
from purify.noise import Stage, standard_normal
from purify.purifiers import Purifier
from purify.solvers.grids import time_grid

PUBLISHED = "adjoint, as published"
MEMORY_STEPS = (20, 200)
"""Of the modes whose memory hardly grows with them."""


@dataclass(frozen=True)
class Truth:
    """The purified images and the gradient in float64, with the cotangent that was pulled back; all (b, c, h, w)."""

    value: Tensor
    cotangent: Tensor
    gradient: Tensor


class AuditedPath:
    """A checked configuration whose reverse process an Euler loop can follow.

    Args:
        settings: a configuration of `purify bench`; its `audit` section says what is measured.
        device: where.

    Attributes:
        config: the purifier's section, whose keys are those of the scheme.
        sde: the solver.
        setup: images and models; `double` the models in float64.
        keys: (images,) of the noise; `t_end` where the reverse process stops.

    Raises:
        ConfigError, CheckpointError, DatasetError, ValueError: anything that cannot work, before any work starts.
    """

    def __init__(self, settings: BenchConfig, device: torch.device):
        self.settings, self.device = settings, device
        self.config: Any = settings.purifier
        self.sde = self._checked_solver()
        audit = settings.audit
        asked_by = "audit.images" if audit.images >= audit.convention_images else "audit.convention_images"
        self.setup = setup.load(settings, device, max(audit.images, audit.convention_images), asked_by)
        deployed: Any = self.setup.defended().purifier
        self.t_end: float = deployed.t_end
        self.all_keys = noise_keys(settings.seed, self.setup.image_ids.to(device), 0)
        self.double_score = copy.deepcopy(self.setup.score).double()
        self.double_classifier: nn.Module = copy.deepcopy(self.setup.classifier).double()
        for t_star, steps in self.sweep():
            # refuses times that the network was not trained for, and overlapping steps
            self.purifier("exact", t_star, steps, "diffpure")

    def _checked_solver(self) -> solvers.TorchSDE:
        """Of a configuration that is one Euler path. Raises ConfigError for any other."""
        config = self.config
        if config.scheme != "diffpure":
            raise ConfigError(
                f"purifier.scheme={config.scheme!r}: the audit's reference is an Euler loop over DiffPure's reverse"
                " SDE; give scheme: diffpure"
            )
        sde = solvers.make(
            config.solver,
            **{name: getattr(config, name) for name in ("method", "eta") if getattr(config, name) is not None},
        )
        if not isinstance(sde, solvers.TorchSDE) or sde.method == "srk" or sde.adaptive:
            raise ConfigError(
                f"the audit's reference is an Euler loop over the reverse SDE: it cannot audit {sde}; give solver:"
                " torchsde, method: euler"
            )
        for name, value, usual in (
            ("time", config.time, "own"),
            ("size", config.size, None),
            ("rounds", config.rounds, 1),
            ("t_delta", config.t_delta, 0),
        ):
            if value != usual:
                raise ConfigError(
                    f"purifier.{name}={value!r}: the audit is of one path in the score model's own times and image"
                    f" size; leave it at {usual!r}"
                )
        return sde

    @property
    def images(self) -> Tensor:
        """Those that gradients are compared on, (b, c, h, w)."""
        return self.setup.x[: self.settings.audit.images]

    @property
    def keys(self) -> Tensor:
        """(b,) of their noise."""
        return self.all_keys[: self.settings.audit.images]

    def sweep(self) -> list[tuple[float, int]]:
        """All pairs of t* and steps."""
        return [(t_star, steps) for t_star in self.settings.audit.t_star for steps in self.settings.audit.steps]

    def purifier(self, mode: str, t_star: float, steps: int, grid: str, score: ScoreModel | None = None) -> Purifier:
        """The configured purifier in that gradient mode, at that setting."""
        config, score = self.config, score or self.setup.score
        if mode == PUBLISHED:
            return PublishedAdjoint(score, t_star, steps, self.t_end, config.noising)
        options: dict[str, Any] = {"gradient": mode, "grid": grid, "noising": config.noising, "solver": self.sde}
        return DiffPure(score, t_star, steps, t_end=self.t_end, **options)

    def modes(self) -> list[str]:
        """All modes but `backprop`; the published adjoint is of the reverse SDE, eta = 1, and shortens a last step that
        is longer than t_end.
        """
        config = self.config
        shortest = min(1e-3, config.t_star / max(config.steps, *MEMORY_STEPS))
        return [mode for mode in MODES if mode != "backprop"] + [PUBLISHED] * (
            self.sde.eta == 1 and self.t_end < shortest
        )

    def truth(self, t_star: float, steps: int, grid: str) -> Truth:
        """The plain float64 loop over the reverse SDE as Song et al. write it (eq. 6), and its gradient."""
        config, score = self.config, self.double_score
        schedule: Any = score.schedule  # discrete noising needs one with a chain, as `DiffPure` has checked
        images = self.images.double().requires_grad_()
        shape, keys = tuple(images.shape[1:]), self.keys
        alpha, sigma = (
            schedule.chain_marginal(t_star)
            if config.noising == "discrete"
            else (schedule.alpha(t_star), schedule.sigma(t_star))
        )
        x = alpha * score.from_unit(images) + sigma * standard_normal(keys, Stage.FORWARD, 0, shape, torch.float64)
        times: Any = time_grid(t_star, self.t_end, steps, grid)  # type: ignore[arg-type]
        for i in range(steps):
            t, dt = times[i], times[i + 1] - times[i]
            f, g = schedule.drift(t), schedule.diffusion(t)
            z = standard_normal(keys, Stage.INCREMENT, i, shape, torch.float64)
            x = (
                x
                + (f * x - (1 + self.sde.eta**2) / 2 * g**2 * score.score(x, t)) * dt
                + self.sde.eta * g * (-dt) ** 0.5 * z
            )
        purified = score.to_unit(x)
        at = purified.detach().requires_grad_()
        (cotangent,) = torch.autograd.grad(margin(self.double_classifier(at), self.setup.y[: len(at)]).sum(), at)
        cotangent = cotangent / cotangent.flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None, None]
        (gradient,) = torch.autograd.grad(purified, images, cotangent)
        return Truth(purified.detach(), cotangent, gradient)
