"""Ways to integrate the reverse process, one file each: settings that `build` a `Solver`. Gradient modes are the
business of `purify.gradients`.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from purify.solvers.ancestral import Ancestral
from purify.solvers.base import Levels, Solver, SolverSettings, Stepping, StepRule
from purify.solvers.ddim import DDIM
from purify.solvers.dpm_solver import DPMSolver
from purify.solvers.exponential import Exponential
from purify.solvers.heun import Heun
from purify.solvers.predictor_corrector import PredictorCorrector
from purify.solvers.torchdiffeq import TorchDiffEq
from purify.solvers.torchsde import TorchSDE

SOLVERS: dict[str, type] = {
    "torchsde": TorchSDE,
    "torchdiffeq": TorchDiffEq,
    "ddim": DDIM,
    "ancestral": Ancestral,
    "heun": Heun,
    "dpm++": DPMSolver,
    "exponential": Exponential,
    "predictor-corrector": PredictorCorrector,
}


def make(solver: str | Mapping[str, Any] | SolverSettings, **options: Any) -> SolverSettings:
    """A solver's settings.

    Args:
        solver: a name in `SOLVERS`, a mapping of `name` and its options, or settings, which are returned.
        options: more options of a named solver.

    Raises:
        ValueError: an unknown name or option, or a value that the solver refuses.
    """
    if not isinstance(solver, str | Mapping):
        if options:
            raise ValueError(
                f"{', '.join(options)} are options of a solver given by name; here they belong into {solver}"
            )
        return solver
    chosen = dict(solver) if isinstance(solver, Mapping) else {"name": solver}
    name = chosen.pop("name", None)
    if name not in SOLVERS:
        given = f"{solver!r} has no name, which must be" if name is None else f"{name!r} is not"
        raise ValueError(f"solver={given} one of {', '.join(SOLVERS)}")
    if twice := chosen.keys() & options.keys():
        raise ValueError(f"solver={solver!r} has {', '.join(sorted(twice))} already: give each option once")
    known = [field.name for field in fields(SOLVERS[name])]
    for option in chosen | options:
        if option not in known:
            raise ValueError(
                f"solver={name!r} has no option {option!r}" + (f"; it has {', '.join(known)}" if known else "")
            )
    try:
        made: SolverSettings = SOLVERS[name](**chosen, **options)
    except TypeError as error:
        raise ValueError(
            f"solver={name!r}: an option is not of the type that is expected of it, got {chosen | options}: {error}"
        ) from error
    return made


__all__ = [
    "DDIM",
    "SOLVERS",
    "Ancestral",
    "DPMSolver",
    "Exponential",
    "Heun",
    "Levels",
    "PredictorCorrector",
    "Solver",
    "SolverSettings",
    "StepRule",
    "Stepping",
    "TorchDiffEq",
    "TorchSDE",
    "make",
]
