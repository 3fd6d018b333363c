"""Makes `import robustbench` work on a fresh install.

RobustBench 1.1.1 imports `autoattack`, whose authors publish it as a repository only; RobustBench's own requirement
installs the same code as `pyautoattack`, with other names for some arguments. The finder below answers for `autoattack`
with a translation, and only where nothing else does: it stands last on the import path, so a real `autoattack` is
always found first. (RobustBench also needs `pkg_resources`, which this package's requirement on setuptools provides.)
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and makes the modules `autoattack` and `autoattack.*`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "autoattack":
            return importlib.util.spec_from_loader(name, self, is_package=True)
        if name.startswith("autoattack.") and importlib.util.find_spec("py" + name) is not None:
            return importlib.util.spec_from_loader(name, self)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        source = importlib.import_module("py" + module.__name__)
        module.__dict__.update({name: value for name, value in vars(source).items() if not name.startswith("__")})
        module.__doc__ = f"`{source.__name__}` under the name that RobustBench imports."
        if module.__name__ == "autoattack":
            module.AutoAttack = _with_official_arguments(source.AutoAttack)  # type: ignore[attr-defined]


def _with_official_arguments(base: type) -> type:
    """pyautoattack's class with the argument names of the authors' repository."""

    class AutoAttack(base):  # type: ignore[misc]
        attacks_to_run: list[str]

        def __init__(
            self,
            model: Any,
            norm: str = "Linf",
            eps: float = 0.3,
            seed: int | None = None,
            verbose: bool = True,
            attacks_to_run: Sequence[str] = (),
            version: str = "standard",
            is_tf_model: bool = False,
            device: Any = "cuda",
            log_path: str | None = None,
        ):
            if is_tf_model:
                raise NotImplementedError(
                    "pyautoattack has no TensorFlow models; install the authors' autoattack for them"
                )
            del log_path  # pyautoattack logs to the logger "auto-attack" instead
            super().__init__(
                model,
                norm=norm,
                eps=eps,
                seed=seed,
                attacks=list(attacks_to_run) or None,
                version=version,
                device=device,
            )
            self.verbose = verbose

        def run_standard_evaluation(
            self, x_orig: Any, y_orig: Any, bs: int = 250, return_labels: bool = False, state_path: Any = None
        ) -> Any:
            x_adv, y_adv = super().run_standard_evaluation(x_orig, y_orig, batch_size=bs, state_path=state_path)
            return (x_adv, y_adv) if return_labels else x_adv

        def run_standard_evaluation_individual(
            self, x_orig: Any, y_orig: Any, bs: int = 250, return_labels: bool = False
        ) -> Any:
            # The base class calls run_standard_evaluation by its own argument names, so this does not go through it.
            attacks = self.attacks_to_run
            results: dict[str, Any] = {}
            try:
                for attack in attacks:
                    self.attacks_to_run = [attack]
                    results[attack] = self.run_standard_evaluation(x_orig, y_orig, bs, return_labels)
            finally:
                self.attacks_to_run = attacks
            return results

    return AutoAttack


def install() -> None:
    """Puts the finder at the end of the import path, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
