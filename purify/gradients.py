"""How a solver's path is differentiated. All modes give the same values for the same keys.

- "exact": the gradient of the discretised path itself. The states are kept, and each step is computed again, with the
  same noise, when the backward pass reaches it: memory is one step's graph and one image-sized state a step.
- "backprop": the same gradient by keeping every graph. The reference, and the fastest where it fits. The only mode that
  also reaches the network's parameters.
- "adjoint": the solver's continuous adjoint (`sdeint_adjoint`, `odeint_adjoint`), approximate. Not under `torch.func`,
  which they do not support.
- "bpda": the whole purifier counts as the identity (Athalye et al. 2018, arXiv 1802.00420), deliberately wrong: what an
  attacker without gradients would use.
"""

import contextlib
from collections.abc import Callable, Sequence
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
        return solver.end(_replay(solver, solver.begin(start(x)), image, keys, range(solver.steps)))
    if mode == "adjoint":
        return solver.solve_adjoint(start(x), keys, image)
    end: Tensor = _StraightThrough.apply(x, lambda y: solver.solve(start(y), keys, y if solver.guided else None))
    return end


def solve_through(
    solver: Solver, start: Callable[[Tensor], Tensor], x: Tensor, keys: Tensor, mode: GradientMode, stops: Sequence[int]
) -> list[Tensor]:
    """The images of the path after `stops` steps, each differentiable in `x` with the gradient of the discretised path,
    as is any loss on several of them.

    In the mode "exact" the path is cut at the stops: memory is that of `solve`.

    Args:
        solver: as for `solve`.
        start: as for `solve`.
        x: as for `solve`.
        keys: as for `solve`.
        mode: "exact" or "backprop".
        stops: numbers of steps, rising, from 0 to solver.steps.

    Raises:
        ValueError: a mode whose gradient is not that of the states on the way.
    """
    if mode not in ("exact", "backprop"):
        raise ValueError(
            f'the states on the way have gradients with gradient="exact" or "backprop" only, got gradient={mode!r}'
        )
    image = x if solver.guided else None
    state, done, states = solver.begin(start(x)), 0, []
    for stop in stops:
        steps = range(done, stop)
        if mode == "exact" and steps and torch.is_grad_enabled():
            state = _replay(solver, state, image, keys, steps)
        else:
            for index in steps:
                state = solver.step(index, state, keys, image)
        states.append(solver.end(state))
        done = stop
    return states


def _replay(solver: Solver, x: Tensor, image: Tensor | None, keys: Tensor, steps: range) -> Tensor:
    last: tuple[Tensor, _Opaque] = _Replay.apply(x, image, keys, solver, steps, _Autocast(x.device.type))
    return last[0]


class _Replay(torch.autograd.Function):
    """Forward: the solver's steps at the indices `steps`, keeping the states. Backward: each of them again, in reverse,
    with its graph.
    """

    @staticmethod
    def forward(
        x: Tensor, image: Tensor | None, keys: Tensor, solver: Solver, steps: range, autocast: "_Autocast"
    ) -> tuple[Tensor, "_Opaque"]:
        states = x.new_empty(len(steps), *x.shape)  # one block: tensors kept one by one would leave holes between them
        for state, index in zip(states, steps, strict=True):
            state.copy_(x)
            x = solver.step(index, x, keys, image)
        return x, _Opaque(states)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, "_Opaque"]) -> None:
        _, image, ctx.keys, ctx.solver, ctx.steps, ctx.autocast = inputs
        ctx.save_for_backward(image)
        ctx.states = output[1].states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        (image,) = ctx.saved_tensors
        guides = () if image is None else (image,)
        of_guides = [torch.zeros_like(guide) for guide in guides]
        for state, index in reversed(list(zip(ctx.states, ctx.steps, strict=True))):
            with ctx.autocast():
                _now, pull_back, *_aux = torch.func.vjp(
                    lambda x, *guide, i=index: ctx.solver.step(i, x, ctx.keys, *guide), state, *guides
                )
            # frees activations on the way, which halves the peak
            gradient, *parts = pull_back(gradient, retain_graph=False)
            of_guides = [total + part for total, part in zip(of_guides, parts, strict=True)]
        return gradient, *(of_guides or (None,)), None, None, None, None


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
