"""How a solver's path is differentiated. All modes give the same values for the same keys.

- "exact": the gradient of the discretised path itself. The states are kept, and each step is computed again, with the same noise, when
  the backward pass reaches it: memory is one step's graph and one image-sized state a step.
- "backprop": the same gradient by keeping every graph. The reference, and the fastest where it fits. The only mode that also reaches the
  network's parameters.
- "adjoint": the solver's continuous adjoint, approximate. Not under `torch.func`, which torchsde's adjoint does not support.
- "bpda": the whole purifier counts as the identity (Athalye et al. 2018, arXiv 1802.00420), deliberately wrong: what an attacker without gradients would use.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from purify.solvers import Solver

GradientMode = Literal["exact", "backprop", "adjoint", "bpda"]
MODES: tuple[str, ...] = get_args(GradientMode)


def solve(solver: Solver, start: Callable[[Tensor], Tensor], x: Tensor, keys: Tensor, mode: GradientMode) -> Tensor:
    """The end of the solver's path from `start(x)`, differentiable in `x` as `mode` says.

    Args:
        solver: the steps; where they are guided, `x` itself is the guide, and its gradient has that part too.
        start: the state that the path begins with.
        x: (b, c, h, w), on the scale of the states.
        keys: (b,) int64.
        mode: a gradient mode.
    """
    image = x if solver.guided else None
    if mode == "backprop" or not torch.is_grad_enabled():
        return solver.solve(start(x), keys, image)
    if mode == "exact":
        final, _ = _Replay.apply(start(x), image, keys, solver, _Autocast(x.device.type))
        return final
    if mode == "adjoint":
        return solver.solve_adjoint(start(x), keys, image)
    return _StraightThrough.apply(x, lambda y: solver.solve(start(y), keys, y if solver.guided else None))


class _Replay(torch.autograd.Function):
    """Forward: every step, keeping the states. Backward: every step again, in reverse, with its graph."""

    @staticmethod
    def forward(x: Tensor, image: Tensor | None, keys: Tensor, solver: Solver, autocast: "_Autocast") -> tuple[Tensor, "_Opaque"]:
        states = x.new_empty(solver.steps, *x.shape)  # one block: tensors kept one by one would leave holes between them
        for index in range(solver.steps):
            states[index] = x
            x = solver.step(index, x, keys, image)
        return x, _Opaque(states)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, "_Opaque"]) -> None:
        _, image, ctx.keys, ctx.solver, ctx.autocast = inputs
        ctx.save_for_backward(image)
        ctx.states = output[1].states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        (image,) = ctx.saved_tensors
        guides = () if image is None else (image,)
        of_guides = [torch.zeros_like(guide) for guide in guides]
        for index in reversed(range(ctx.solver.steps)):
            with ctx.autocast():
                _, pull_back = torch.func.vjp(lambda x, *guide, i=index: ctx.solver.step(i, x, ctx.keys, *guide), ctx.states[index], *guides)
            gradient, *parts = pull_back(gradient, retain_graph=False)  # frees activations on the way, which halves the peak
            of_guides = [total + part for total, part in zip(of_guides, parts, strict=True)]
        return gradient, *(of_guides or (None,)), None, None, None


class _Opaque:
    """Carries the states from `forward` to `setup_context` without making them outputs of the function."""

    def __init__(self, states: Tensor):
        self.states = states


class _StraightThrough(torch.autograd.Function):
    """Forward: `function(x)`. Backward: the identity."""

    @staticmethod
    def forward(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Autocast:
    """The autocast setting of the forward pass, for the recomputation to repeat it."""

    def __init__(self, device_type: str):
        self.device_type = device_type
        self.enabled = torch.is_autocast_enabled(device_type)
        self.dtype = torch.get_autocast_dtype(device_type)

    def __call__(self) -> contextlib.AbstractContextManager[None]:
        return torch.autocast(self.device_type, self.dtype, enabled=self.enabled)
