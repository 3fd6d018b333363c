"""SDEs through torchsde (Li et al. 2020, arXiv 2001.01328)."""

import contextlib
from collections.abc import Iterator

import torch
import torchsde
from torch import Tensor

from purify.noise import KeyedBrownian
from purify.sde import SDE, Side

METHODS = {"euler": 1, "milstein": 1, "srk": 3}
"""torchsde's Ito methods for additive noise -> drift evaluations a step. Strong orders here: 1, 1, 1.5."""


class TorchSDE:
    """Integrates over the step clock: ts = [0, n], dt = 1, real times inside the SDE.

    Args:
        sde: what to integrate.
        method: a name in `METHODS`. "milstein" equals "euler" for additive noise.
    """

    def __init__(self, sde: SDE, method: str = "euler"):
        if method not in METHODS:
            raise ValueError(f"method={method!r} is not one of torchsde's Ito methods {', '.join(METHODS)}")
        self.sde = sde
        self.method = method
        self.steps = sde.steps
        self.guided = sde.guided

    def step(self, index: int, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """See `Solver.step`."""
        return self._integrate(x, keys, image, index, index + 1)

    def solve(self, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """See `Solver.solve`."""
        return self._integrate(x, keys, image, 0, self.steps)

    def solve_adjoint(self, x: Tensor, keys: Tensor, image: Tensor | None = None) -> Tensor:
        """All steps; the gradient solves torchsde's stochastic adjoint equation backwards, by Euler on the same grid and noise.

        The network counts as constant (`adjoint_params` holds the guiding image or nothing). The result approximates the gradient; how well
        depends on the step size.
        """
        if self.method == "srk":
            raise ValueError('gradient="adjoint" needs method="euler" or "milstein": torchsde has no adjoint of srk')
        return self._integrate(x, keys, image, 0, self.steps, adjoint=True)

    def _integrate(self, x: Tensor, keys: Tensor, image: Tensor | None, start: int, end: int, adjoint: bool = False) -> Tensor:
        view = _TorchsdeView(self.sde, x.shape, image, KeyedBrownian(keys, x[0].numel(), x.dtype))
        # Times on the CPU: torchsde compares them at every step, which would wait for a GPU.
        arguments = dict(sde=view, y0=x.flatten(1), ts=torch.tensor([start, end], dtype=torch.float64), dt=1.0, bm=view.brownian, method=self.method)
        with _untouched_generators(x.device):
            if adjoint:
                states = torchsde.sdeint_adjoint(**arguments, adjoint_method="euler", adjoint_params=() if image is None else (image,))
            else:
                states = torchsde.sdeint(**arguments)
        expected = (end - start) * METHODS[self.method]
        if view.evaluations != expected:
            raise RuntimeError(f"torchsde evaluated the drift {view.evaluations} times over {end - start} steps, expected {expected}")
        view.walks_up = False
        return states[-1].reshape(x.shape)


class _TorchsdeView:
    """An SDE as torchsde wants to see it: flat states, additive noise.

    torchsde's contract check calls the drift once for its shape, before any solver asks for a Brownian increment; that call is answered
    without the network. The caller compares `evaluations` with the number it expects, so no other call can go unnoticed.
    """

    noise_type = "additive"
    sde_type = "ito"

    def __init__(self, sde: SDE, shape: torch.Size, image: Tensor | None, brownian: KeyedBrownian):
        self.sde = sde
        self.shape = shape
        self.image = image
        self.brownian = brownian
        self.evaluations = 0
        self.walks_up = True  # False once the forward solve is over: the adjoint walks the clock down

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        if self.brownian.queries == 0:
            return torch.zeros_like(y)
        self.evaluations += 1
        return self.sde.drift(float(u), y.reshape(self.shape), self.image, self._closed).flatten(1)

    def g_prod(self, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        del y
        return self.sde.diffusion(float(u), self._closed) * v

    @property
    def _closed(self) -> Side:
        return "left" if self.walks_up else "right"


@contextlib.contextmanager
def _untouched_generators(device: torch.device) -> Iterator[None]:
    """torchsde's contract check draws from torch's global generators; this puts them back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
