"""`purify audit`: how far each gradient mode is from the truth on a configured defence, and what it costs.

Each mode is compared with the truth of `benchmarks.experiments.audit_path` image by image. The gradient is that of the
classifier's margin as an attack would use it: the margin's gradient at the truly purified image, normalised and pulled
back through the purifier in each mode. (The classifier is kept out of the comparison: its own float32 rounding can flip
a ReLU, which says nothing about the purifier.)
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.config.bench import BenchConfig
from benchmarks.evaluation.precision import full_precision
from benchmarks.experiments import conventions, speed
from benchmarks.experiments.audit_path import MEMORY_STEPS, PUBLISHED, AuditedPath, Truth
from benchmarks.experiments.audit_verdicts import verdicts
from benchmarks.experiments.gradient_errors import compare, dot, pull_back
from benchmarks.experiments.memory import peak_mib
from benchmarks.runs.environment import environment
from benchmarks.runs.progress import progress_bar
from benchmarks.runs.schema import AuditResult, write
from benchmarks.runs.schema.audit import FiniteDifferences, GradientRow, MemoryRow, ModeTimes
from purify import noise_keys
from purify.solvers.grids import time_grid

__all__ = ["PUBLISHED", "Audit", "compare"]

_DIRECTIONS = 4
_MEMORY_STEPS_BACKPROP = (10, 20)  # 200 would take tens of GB
_ROUNDS = 5


class Audit(AuditedPath):
    """A checked audit, ready to run; see `AuditedPath`."""

    def run(self, out: Path, say: Callable[[str], None]) -> AuditResult:
        """Measures everything, writes audit.json to `out` as it goes, and returns its contents; `say` gets a line per
        part.
        """
        config, audit = self.config, self.settings.audit
        result = AuditResult(
            schema_version=1,
            config=self.settings.model_dump(mode="json"),
            weights=self.setup.weights,
            environment=environment(self.device),
            images=audit.images,
            sweep=(),
        )

        def keep(**parts: Any) -> None:
            nonlocal result
            result = result.model_copy(update=parts)
            result = result.model_copy(update={"verdicts": tuple(verdicts(result))})
            write(out / "audit.json", result)

        with full_precision(self.device):
            keep(gradients=self.gradients(config.t_star, config.steps, config.grid, full=True))
            keep(finite_differences=self.finite_differences())
            say("gradients and finite differences: done")
            keep(time=self.times())
            say("time: done")
            keep(memory=self.memory() if audit.memory_images else ())
            say("memory: done")
            count = audit.convention_images
            keep(conventions=tuple(conventions.measure(self.setup, self.all_keys, count)) if count else ())
            sweep = self.sweep()
            with progress_bar("t* and steps", sum(steps for _, steps in sweep)) as update:
                done = 0
                for t_star, steps in sweep:
                    # On the published grid one truth serves all modes.
                    keep(sweep=result.sweep + self.gradients(t_star, steps, "diffpure"))
                    done += steps
                    update(done, f"t* = {t_star}, {steps} steps")
        return result

    def gradients(self, t_star: float, steps: int, grid: str, full: bool = False) -> tuple[GradientRow, ...]:
        """A row for each mode at this setting; `full` adds float64, and the published adjoint at its own 1000 t_star
        steps.
        """
        truth = self.truth(t_star, steps, grid)
        rows = []
        unrolled: dict[str, tuple[Tensor, Tensor]] = {}  # by precision: what `backprop` gives
        for mode, precision in [("backprop", "float64"), ("exact", "float64")] * full + [
            (m, "float32") for m in ("backprop", *self.modes())
        ]:
            where, reference = (t_star, steps, grid), truth
            if mode == PUBLISHED and full:
                where = (t_star, max(round(1000 * t_star), 1), "diffpure")
                reference = self.truth(*where)
            value, gradient = self._pulled_back(mode, precision, where, reference)
            same_value, same_gradient = None, None
            if mode != PUBLISHED:
                values, gradients = unrolled.setdefault(precision, (value, gradient))
                same_value, same_gradient = torch.equal(value, values), torch.equal(gradient, gradients)
            rows.append(
                GradientRow(
                    mode=mode,
                    precision=precision,
                    t_star=where[0],
                    steps=where[1],
                    grid=where[2],
                    **dict(compare(gradient, reference.gradient)),
                    value_error=float((value.double() - reference.value).abs().max()),
                    value_as_backprop=same_value,
                    gradient_as_backprop=same_gradient,
                )
            )
        return tuple(rows)

    def _pulled_back(
        self, mode: str, precision: str, where: tuple[float, int, str], truth: Truth
    ) -> tuple[Tensor, Tensor]:
        """Value and gradient in that mode and precision, with the cotangent of the truth."""
        dtype = getattr(torch, precision)
        purifier = self.purifier(mode, *where, score=self.double_score if precision == "float64" else None)
        return pull_back(purifier, self.images.to(dtype), self.keys, truth.cotangent.to(dtype))

    def finite_differences(self) -> FiniteDifferences:
        """Directional derivatives of the purifier in float64 against its `exact` gradient and the reference's."""
        config = self.config
        truth = self.truth(config.t_star, config.steps, config.grid)
        purifier = self.purifier("exact", config.t_star, config.steps, config.grid, self.double_score)
        images, keys = self.images.double(), self.keys
        _, exact = pull_back(purifier, images, keys, truth.cotangent)
        h = 1e-4
        errors: dict[str, list[Tensor]] = {"exact": [], "reference": []}

        @torch.no_grad()
        def loss(shift: Tensor) -> Tensor:
            return dot(purifier(images + shift, keys), truth.cotangent)

        generator = torch.Generator().manual_seed(self.settings.seed)
        for _ in range(_DIRECTIONS):
            d = torch.randn(images.shape, dtype=torch.float64, generator=generator).to(self.device)
            # error of order h^4
            numeric = (8 * (loss(h * d) - loss(-h * d)) - (loss(2 * h * d) - loss(-2 * h * d))) / (12 * h)
            for name, gradient in (("exact", exact), ("reference", truth.gradient)):
                errors[name].append((numeric - dot(gradient, d)).abs() / gradient.flatten(1).norm(dim=1))
        largest = {name: float(torch.stack(parts).max()) for name, parts in errors.items()}
        return FiniteDifferences(directions=_DIRECTIONS, step=h, exact=largest["exact"], reference=largest["reference"])

    def times(self) -> ModeTimes:
        """Time of value and gradient in each mode, over that of the bare network evaluations of one purification."""
        config = self.config
        images, keys = self.images, self.keys
        modes = ["backprop", *self.modes()]
        grid = time_grid(config.t_star, self.t_end, config.steps, config.grid)
        parts = {speed.BARE: speed.bare_evaluations(self.setup.score, images, grid)}
        parts |= {
            mode: speed.value_and_gradient(self.purifier(mode, config.t_star, config.steps, config.grid), images, keys)
            for mode in modes
        }
        timing = speed.compare(parts, _ROUNDS, self.device)
        return ModeTimes(
            images=len(images), steps=config.steps, rounds=_ROUNDS, seconds=timing.seconds, ratio=timing.ratio
        )

    def memory(self) -> tuple[MemoryRow, ...]:
        """Peak memory of value and gradient in each mode at two numbers of steps, each in a process of its own."""
        images = self.settings.audit.memory_images
        state = images * 4 * self.setup.x[0].numel() / 2**20
        rows = []
        for mode in ["backprop", *self.modes()]:
            few, many = _MEMORY_STEPS_BACKPROP if mode == "backprop" else MEMORY_STEPS
            low, high = (
                peak_mib(partial(_prepare, self.settings, str(self.device), mode, steps, images), self.device)
                for steps in (few, many)
            )
            both = isinstance(low, float) and isinstance(high, float)
            growth = (high - low) / (many - few) if both else None  # type: ignore[operator]
            rows.append(
                MemoryRow(
                    mode=mode,
                    images=images,
                    steps=(few, many),
                    peak_mib=(low, high),
                    mib_per_step=growth,
                    state_mib=state,
                )
            )
        return tuple(rows)


def _prepare(settings: BenchConfig, device: str, mode: str, steps: int, images: int) -> Callable[[], None]:
    """For `peak_mib`: the purifier of a configuration on random images, uniform grid, after a first small call (which
    makes torch import more).
    """
    small = settings.audit.model_copy(update={"images": 1, "convention_images": 1, "t_star": ()})
    audit = Audit(settings.model_copy(update={"audit": small}), torch.device(device))
    t_star = audit.config.t_star
    purifier = audit.purifier(mode, t_star, steps, "uniform")
    speed.value_and_gradient(audit.purifier(mode, t_star, 1, "uniform"), audit.images, audit.keys)()
    x = torch.rand(images, *audit.setup.x.shape[1:], generator=torch.Generator().manual_seed(0)).to(device)
    return speed.value_and_gradient(purifier, x, noise_keys(0, torch.arange(images, device=x.device), 0))
