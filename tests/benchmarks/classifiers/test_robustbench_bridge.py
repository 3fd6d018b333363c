"""RobustBench on a fresh install, and its code on our models."""

import subprocess
import sys

import pytest
import torch
from torch import nn


def python(code, *path):
    setup = "import sys; " + "".join(f"sys.path.insert(0, {str(p)!r}); " for p in path)
    return subprocess.run([sys.executable, "-W", "ignore", "-c", setup + code], capture_output=True, text=True, cwd="/")


def test_robustbench_imports_after_benchmarks():
    result = python(
        "import benchmarks, robustbench; from robustbench.utils import load_model;"
        " print(robustbench.benchmark.__name__)"
    )
    assert result.stdout.strip() == "benchmark", result.stderr


def test_a_real_autoattack_comes_first(tmp_path):
    (tmp_path / "autoattack").mkdir()
    (tmp_path / "autoattack" / "__init__.py").write_text("real = True")
    result = python("import benchmarks, autoattack; print(autoattack.real)", tmp_path)
    assert result.stdout.strip() == "True", result.stderr


def test_missing_submodules_are_still_missing():
    result = python(
        "import benchmarks, autoattack.state\ntry:\n    import autoattack.nothing\nexcept ModuleNotFoundError as e:\n  "
        "  print(e.name)"
    )
    assert result.stdout.strip() == "autoattack.nothing", result.stderr


@pytest.mark.filterwarnings("ignore")
def test_robustbench_s_calls_fit():
    """The calls of robustbench.eval.benchmark, by the authors' argument names."""
    import benchmarks  # noqa: F401, I001 (makes the next lines work)
    from autoattack import AutoAttack
    from autoattack.state import EvaluationState

    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    x = torch.rand(4, 3, 4, 4, generator=generator)
    y = model(x).argmax(1)
    attack = AutoAttack(
        model, norm="Linf", eps=0.3, version="custom", attacks_to_run=["apgd-ce"], device="cpu", log_path=None
    )
    x_adv, labels = attack.run_standard_evaluation(x, y, bs=2, return_labels=True, state_path=None)
    assert (labels == model(x_adv).argmax(1)).all() and (labels != y).all()
    assert isinstance(attack.run_standard_evaluation(x, y, bs=2), torch.Tensor)
    individual = attack.run_standard_evaluation_individual(x, y, bs=4)
    assert set(individual) == {"apgd-ce"} and individual["apgd-ce"].shape == x.shape
    assert EvaluationState({"apgd-ce"}).run_attacks == set()
