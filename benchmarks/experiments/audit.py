"""`purify audit`: how far each gradient mode is from the truth on a configured defence, and what it costs.

The truth is a plain float64 Euler loop, written here without the purifier, its solver or torchsde, on the same noise,
differentiated by autograd through every step. Each mode is compared with it image by image. The gradient is that of the
classifier's margin as an attack would use it: the margin's gradient at the truly purified image, normalised and pulled
back through the purifier in each mode. (The classifier is kept out of the comparison: its own float32 rounding can flip
a ReLU, which says nothing about the purifier.)
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.losses import margin
from benchmarks.config.bench import BenchConfig
from benchmarks.config.sections import ConfigError
from benchmarks.evaluation.precision import full_precision
from benchmarks.experiments import conventions, setup, speed
from benchmarks.experiments.audit_verdicts import verdicts
from benchmarks.experiments.memory import peak_mib
from benchmarks.experiments.published_adjoint import PublishedAdjoint
from benchmarks.runs.environment import environment
from benchmarks.runs.folder import write_text
from benchmarks.runs.progress import progress_bar
from purify import DiffPure, ScoreModel, noise_keys, solvers
from purify.gradients import MODES
from purify.noise import Stage, standard_normal
from purify.purifiers import Purifier
from purify.solvers.grids import time_grid

SCHEMA = 1
PUBLISHED = "adjoint, as published"
_DIRECTIONS = 4
_MEMORY_STEPS = (20, 200)
_MEMORY_STEPS_BACKPROP = (10, 20)  # 200 would take tens of GB
_ROUNDS = 5


@dataclass(frozen=True)
class Truth:
    """The purified images and the gradient in float64, with the cotangent that was pulled back; all (b, c, h, w)."""

    value: Tensor
    cotangent: Tensor
    gradient: Tensor


class Audit:
    """A checked audit, ready to run.

    Args:
        settings: a configuration of `purify bench`; its `audit` section says what is measured.
        device: where.

    Raises:
        ConfigError, CheckpointError, DatasetError, ValueError: anything that cannot work, before any work starts.
    """

    def __init__(self, settings: BenchConfig, device: torch.device):
        self.settings, self.device = settings, device
        config = settings.purifier
        if config.scheme != "diffpure":
            raise ConfigError(
                f"purifier.scheme={config.scheme!r}: the audit's reference is an Euler loop over DiffPure's reverse"
                " SDE; give scheme: diffpure"
            )
        self.sde = solvers.make(
            config.solver,
            **{name: getattr(config, name) for name in ("method", "eta") if getattr(config, name) is not None},
        )
        if not isinstance(self.sde, solvers.TorchSDE) or self.sde.method == "srk" or self.sde.adaptive:
            raise ConfigError(
                f"the audit's reference is an Euler loop over the reverse SDE: it cannot audit {self.sde}; give solver:"
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
        audit = settings.audit
        asked_by = "audit.images" if audit.images >= audit.convention_images else "audit.convention_images"
        self.setup = setup.load(settings, device, max(audit.images, audit.convention_images), asked_by)
        self.t_end = self.setup.defended().purifier.t_end
        self.keys = noise_keys(settings.seed, self.setup.image_ids.to(device), 0)
        self.double = {
            "score": copy.deepcopy(self.setup.score).double(),
            "classifier": copy.deepcopy(self.setup.classifier).double(),
        }
        for t_star, steps in self._sweep():
            # refuses times that the network was not trained for, and overlapping steps
            self._purifier("exact", t_star, steps, "diffpure")

    def _sweep(self) -> list[tuple[float, int]]:
        return [(t_star, steps) for t_star in self.settings.audit.t_star for steps in self.settings.audit.steps]

    def _purifier(self, mode: str, t_star: float, steps: int, grid: str, score: ScoreModel | None = None) -> Purifier:
        config, score = self.settings.purifier, score or self.setup.score
        if mode == PUBLISHED:
            return PublishedAdjoint(score, t_star, steps, self.t_end, config.noising)
        return DiffPure(score, t_star, steps, mode, self.sde, t_end=self.t_end, grid=grid, noising=config.noising)  # type: ignore[arg-type]

    def run(self, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
        """Measures everything, writes audit.json to `out` as it goes, and returns its contents; `say` gets a line per
        part.
        """
        config, audit = self.settings.purifier, self.settings.audit
        result: dict[str, Any] = {
            "schema": SCHEMA,
            "config": self.settings.model_dump(mode="json"),
            "weights": self.setup.weights,
            "environment": environment(self.device),
            "images": audit.images,
            "sweep": [],
        }

        def keep(name: str, value: Any) -> None:
            result[name] = value
            result["verdicts"] = verdicts(result)
            write_text(out / "audit.json", json.dumps(result, indent=2) + "\n")

        with full_precision(self.device):
            keep("gradients", self.gradients(config.t_star, config.steps, config.grid, full=True))
            keep("finite_differences", self.finite_differences())
            say("gradients and finite differences: done")
            keep("time", self.times())
            say("time: done")
            keep("memory", self.memory() if audit.memory_images else [])
            say("memory: done")
            keep(
                "conventions",
                conventions.measure(self.setup, self.keys, audit.convention_images) if audit.convention_images else [],
            )
            sweep = self._sweep()
            with progress_bar("t* and steps", sum(steps for _, steps in sweep)) as update:
                done = 0
                for t_star, steps in sweep:
                    # On the published grid one truth serves all modes.
                    keep("sweep", result["sweep"] + self.gradients(t_star, steps, "diffpure"))
                    done += steps
                    update(done, f"t* = {t_star}, {steps} steps")
        return result

    # gradients

    def truth(self, t_star: float, steps: int, grid: str) -> Truth:
        """The plain float64 loop over the reverse SDE as Song et al. write it (eq. 6), and its gradient."""
        config, score, schedule = self.settings.purifier, self.double["score"], self.double["score"].schedule
        images = self._images().double().requires_grad_()
        shape, keys = tuple(images.shape[1:]), self._keys()
        alpha, sigma = (
            schedule.chain_marginal(t_star)
            if config.noising == "discrete"
            else (schedule.alpha(t_star), schedule.sigma(t_star))
        )
        x = alpha * score.from_unit(images) + sigma * standard_normal(keys, Stage.FORWARD, 0, shape, torch.float64)
        times = time_grid(t_star, self.t_end, steps, grid)  # type: ignore[arg-type]
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
        (cotangent,) = torch.autograd.grad(margin(self.double["classifier"](at), self.setup.y[: len(at)]).sum(), at)
        cotangent = cotangent / cotangent.flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None, None]
        (gradient,) = torch.autograd.grad(purified, images, cotangent)
        return Truth(purified.detach(), cotangent, gradient)

    def gradients(self, t_star: float, steps: int, grid: str, full: bool = False) -> list[dict[str, Any]]:
        """A row for each mode at this setting; `full` adds float64, and the published adjoint at its own 1000 t_star
        steps.
        """
        truth = self.truth(t_star, steps, grid)
        rows = []
        unrolled: dict[str, tuple[Tensor, Tensor]] = {}  # by precision: what `backprop` gives
        for mode, precision in [("backprop", "float64"), ("exact", "float64")] * full + [
            (m, "float32") for m in ("backprop", *self._modes())
        ]:
            where, reference = {"t_star": t_star, "steps": steps, "grid": grid}, truth
            if mode == PUBLISHED and full:
                where = {"t_star": t_star, "steps": max(round(1000 * t_star), 1), "grid": "diffpure"}
                reference = self.truth(**where)
            dtype = getattr(torch, precision)
            purifier = self._purifier(mode, **where, score=self.double["score"] if precision == "float64" else None)
            value, gradient = _pull_back(
                purifier, self._images().to(dtype), self._keys(), reference.cotangent.to(dtype)
            )
            same_value, same_gradient = None, None
            if mode != PUBLISHED:
                values, gradients = unrolled.setdefault(precision, (value, gradient))
                same_value, same_gradient = torch.equal(value, values), torch.equal(gradient, gradients)
            errors = {
                **compare(gradient, reference.gradient),
                "value_error": float((value.double() - reference.value).abs().max()),
            }
            rows.append(
                {
                    "mode": mode,
                    "precision": precision,
                    **where,
                    **errors,
                    "value_as_backprop": same_value,
                    "gradient_as_backprop": same_gradient,
                }
            )
        return rows

    def _modes(self) -> list[str]:
        """All modes but `backprop`; the published adjoint is of the reverse SDE, eta = 1, and shortens a last step that
        is longer than t_end.
        """
        config = self.settings.purifier
        shortest = min(1e-3, config.t_star / max(config.steps, *_MEMORY_STEPS))
        return [mode for mode in MODES if mode != "backprop"] + [PUBLISHED] * (
            self.sde.eta == 1 and self.t_end < shortest
        )

    def finite_differences(self) -> dict[str, Any]:
        """Directional derivatives of the purifier in float64 against its `exact` gradient and the reference's."""
        config = self.settings.purifier
        truth = self.truth(config.t_star, config.steps, config.grid)
        purifier = self._purifier("exact", config.t_star, config.steps, config.grid, self.double["score"])
        images, keys = self._images().double(), self._keys()
        _, exact = _pull_back(purifier, images, keys, truth.cotangent)
        h, errors = 1e-4, {"exact": [], "reference": []}

        @torch.no_grad()
        def loss(shift: Tensor) -> Tensor:
            return _dot(purifier(images + shift, keys), truth.cotangent)

        generator = torch.Generator().manual_seed(self.settings.seed)
        for _ in range(_DIRECTIONS):
            d = torch.randn(images.shape, dtype=torch.float64, generator=generator).to(self.device)
            # error of order h^4
            numeric = (8 * (loss(h * d) - loss(-h * d)) - (loss(2 * h * d) - loss(-2 * h * d))) / (12 * h)
            for name, gradient in (("exact", exact), ("reference", truth.gradient)):
                errors[name].append((numeric - _dot(gradient, d)).abs() / gradient.flatten(1).norm(dim=1))
        return {
            "directions": _DIRECTIONS,
            "step": h,
            **{name: float(torch.stack(parts).max()) for name, parts in errors.items()},
        }

    # cost

    def times(self) -> dict[str, Any]:
        """Time of value and gradient in each mode, over that of the bare network evaluations of one purification."""
        config = self.settings.purifier
        images, keys = self._images(), self._keys()
        modes = ["backprop", *self._modes()]
        grid = time_grid(config.t_star, self.t_end, config.steps, config.grid)
        parts = {speed.BARE: speed.bare_evaluations(self.setup.score, images, grid)}
        parts |= {
            mode: speed.value_and_gradient(self._purifier(mode, config.t_star, config.steps, config.grid), images, keys)
            for mode in modes
        }
        return {
            "images": len(images),
            "steps": config.steps,
            "rounds": _ROUNDS,
            **speed.compare(parts, _ROUNDS, self.device),
        }

    def memory(self) -> list[dict[str, Any]]:
        """Peak memory of value and gradient in each mode at two numbers of steps, each in a process of its own."""
        images = self.settings.audit.memory_images
        state = images * 4 * self.setup.x[0].numel() / 2**20
        rows = []
        for mode in ["backprop", *self._modes()]:
            few, many = _MEMORY_STEPS_BACKPROP if mode == "backprop" else _MEMORY_STEPS
            peaks = [
                peak_mib(partial(_prepare, self.settings, str(self.device), mode, steps, images), self.device)
                for steps in (few, many)
            ]
            growth = (peaks[1] - peaks[0]) / (many - few) if all(isinstance(peak, float) for peak in peaks) else None  # type: ignore[operator]
            rows.append(
                {
                    "mode": mode,
                    "images": images,
                    "steps": [few, many],
                    "peak_mib": peaks,
                    "mib_per_step": growth,
                    "state_mib": state,
                }
            )
        return rows

    def _images(self) -> Tensor:
        return self.setup.x[: self.settings.audit.images]

    def _keys(self) -> Tensor:
        return self.keys[: self.settings.audit.images]


def _prepare(settings: BenchConfig, device: str, mode: str, steps: int, images: int) -> Callable[[], None]:
    """For `peak_mib`: the purifier of a configuration on random images, uniform grid, after a first small call (which
    makes torch import more).
    """
    small = settings.audit.model_copy(update={"images": 1, "convention_images": 1, "t_star": ()})
    audit = Audit(settings.model_copy(update={"audit": small}), torch.device(device))
    purifier = audit._purifier(mode, settings.purifier.t_star, steps, "uniform")
    speed.value_and_gradient(
        audit._purifier(mode, settings.purifier.t_star, 1, "uniform"), audit._images(), audit._keys()
    )()
    x = torch.rand(images, *audit.setup.x.shape[1:], generator=torch.Generator().manual_seed(0)).to(device)
    return speed.value_and_gradient(purifier, x, noise_keys(0, torch.arange(images, device=x.device), 0))


def _pull_back(purifier: Purifier, x: Tensor, keys: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of sum(purifier(x) * cotangent)."""
    x = x.clone().requires_grad_()
    value = purifier(x, keys)
    (gradient,) = torch.autograd.grad(value, x, cotangent)
    return value.detach(), gradient


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def compare(gradient: Tensor, truth: Tensor) -> dict[str, Any]:
    """How far `gradient` is from `truth`, both (b, c, h, w).

    Returns:
        relative_error: norm of the difference over the norm of the truth, over all images; relative_error_images:
            median and largest by image;
        cosine: median, smallest and largest by image; sign_agreement: share of pixels whose sign is right, which is
            what an Linf step uses;
        zero: share of images whose gradient is exactly zero; not_finite: share of images with NaN or infinity.
    """
    gradient, truth = gradient.double().flatten(1), truth.flatten(1)
    errors = (gradient - truth).norm(dim=1) / truth.norm(dim=1)
    cosines = F.cosine_similarity(gradient, truth, dim=1, eps=1e-300)
    return {
        "relative_error": float((gradient - truth).norm() / truth.norm()),
        "relative_error_images": {"median": float(errors.median()), "max": float(errors.max())},
        "cosine": {"median": float(cosines.median()), "min": float(cosines.min()), "max": float(cosines.max())},
        "sign_agreement": float((gradient.sign() == truth.sign()).double().mean()),
        "zero": float((gradient == 0).all(1).double().mean()),
        "not_finite": float((~gradient.isfinite()).any(1).double().mean()),
    }
