"""The one door to classifiers, and the sources that need no library of models."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import load_classifier
from benchmarks.classifiers import check_logits, packaged_classifiers
from purify import CheckpointError


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PURIFY_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "fashion-mnst"}, CheckpointError, r"packaged are fashion-mnist.* SOURCE:NAME .* robustbench, timm"),
        ({"name": "tim:resnet50"}, CheckpointError, r"unknown source 'tim'; known: robustbench, timm"),
        ({"name": "fashion-mnist", "dataset": "cifar10"}, ValueError, r"only \"robustbench:\" names take them"),
        ({"name": "timm:resnet50", "threat": "Linf"}, ValueError, r"only \"robustbench:\" names take them"),
        (
            {"name": "fashion-mnist", "weights": "other.pth"},
            ValueError,
            r"weights='other.pth': classifiers of this package take",
        ),
        ({"name": "pyautoattack:resnet50"}, CheckpointError, r"known: resnet18"),
        (
            {"name": "pyautoattack:resnet18", "weights": "other.pth"},
            ValueError,
            r"weights='other.pth': classifiers of pyautoattack",
        ),
    ],
)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        load_classifier(**arguments)


def test_packaged_names_and_their_files():
    model = load_classifier("fashion-mnist")
    assert (
        not model.training
        and not any(p.requires_grad for p in model.parameters())
        and {p.dtype for p in model.parameters()} == {torch.float32}
    )
    file = packaged_classifiers()["fashion-mnist"]
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(load_classifier(Path(file))(x), model(x))


def test_random_weights_are_always_the_same_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (load_classifier("fashion-mnist", weights="random") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(first(x), second(x)) and not torch.equal(first(x), load_classifier("fashion-mnist")(x))


def test_pyautoattack_on_real_images():
    """937 of the first 1,000 test images are right, 94 of the first 100."""
    folder = os.environ.get("PURIFY_TEST_DATA")
    if not folder:
        pytest.skip("PURIFY_TEST_DATA is not set: it names the folder with cifar10/test_first1000.npz")
    with np.load(Path(folder) / "cifar10" / "test_first1000.npz") as arrays:
        x, y = (
            torch.from_numpy(arrays["images"][:100]).float() / 255,
            torch.from_numpy(arrays["labels"][:100].astype(np.int64)),
        )
    with torch.no_grad():
        correct = int((load_classifier("pyautoattack:resnet18")(x).argmax(1) == y).sum())
    assert correct == 94


FACTORY = """
import dataclasses, torch

@dataclasses.dataclass
class Settings:
    classes: int = 3

def make():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, Settings().classes)).half().train()

def fails():
    raise RuntimeError("no such thing")

def number():
    return 7

ready = torch.nn.Linear(1, 1)
constant = 5
"""


@pytest.mark.parametrize(
    "place", ["own_classifier_module", "own_classifier_module.py", "{folder}/own_classifier_module.py"]
)
def test_own_module(tmp_path, monkeypatch, place):
    (tmp_path / "own_classifier_module.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"module:{place.format(folder=tmp_path)}:make"
    model = load_classifier(name)
    assert model(torch.zeros(2, 3, 2, 2)).shape == (2, 3) and not model.training and not model[1].weight.requires_grad
    assert model[1].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own.py:mak", "has no 'mak'; did you mean make"),
        ("own.py:fails", r"fails\(\) failed: RuntimeError: no such thing"),
        ("own.py:number", r"number\(\) returned a int, expected a torch.nn.Module"),
        ("own.py:constant", "'constant' is a int, expected a function without arguments"),
        ("own.py:ready", "'ready' is a Linear, expected a function without arguments"),
        ("absent.py:make", "no file at .*absent.py"),
        ("broken.py:make", "running .*broken.py failed: SyntaxError"),
        ("no_such_package.models:make", "no module 'no_such_package' on Python's path; .*PYTHONPATH"),
        ("needs_absent:make", "importing needs_absent failed: No module named 'absent_dependency'"),
        ("json:", "expected module:path.to.module:function"),
        ("make", "expected module:path.to.module:function"),
    ],
)
def test_own_module_explained(tmp_path, monkeypatch, name, message):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own.py").write_text(FACTORY)
    (tmp_path / "broken.py").write_text("def make(:\n")
    (tmp_path / "needs_absent.py").write_text("import absent_dependency\n")
    with pytest.raises(ValueError, match=message):
        load_classifier(f"module:{name}")


def test_own_module_takes_no_weights(tmp_path):
    with pytest.raises(ValueError, match="loads its own weights"):
        load_classifier("module:json:loads", weights="random")


class Fixed(nn.Module):
    """Returns what it was given, whatever the images."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(2, 3, 1), r"shape \(2, classes\).* got \(2, 3, 1\)"),
        (torch.zeros(3, 5), r"shape \(2, classes\).* got \(3, 5\)"),
        (torch.zeros(2, 1), r"at least two classes, got \(2, 1\)"),
        ((torch.zeros(2, 3),), "a tensor of logits .* got tuple"),
        (torch.tensor([[0.0, float("nan")], [1.0, 2.0]]), r"NaN or infinity for 1 of 2 images in \[0.5, 0.5\]"),
    ],
)
def test_check_logits_refuses(output, message):
    with pytest.raises(ValueError, match=message):
        check_logits(Fixed(output), torch.full((2, 1, 4, 4), 0.5))


def test_check_logits_returns_them_and_warns_of_probabilities(recwarn):
    images, logits = torch.zeros(2, 1, 4, 4), torch.tensor([[0.2, 0.9, 0.1], [0.3, 0.3, 0.3]])
    assert check_logits(Fixed(logits), images) is logits and not recwarn
    with pytest.warns(UserWarning, match="probabilities; attacks need logits"):
        check_logits(Fixed(logits.softmax(1)), images)


class Code:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(
    "write",
    [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))],
    ids=["torch", "pickle"],
)
def test_pickles_with_code_are_not_executed(tmp_path, monkeypatch, write, forced):
    """Nor where the environment asks PyTorch for it."""
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    places = {
        "robustbench:Standard": tmp_path / "models" / "robustbench" / "cifar10" / "Linf" / "Standard.pt",
        "diffpure:resnet-50": tmp_path / "models" / "diffpure" / "cifar10" / "resnet-50" / "weights.pt",
        "torchvision:resnet18": tmp_path / "models" / "torchvision" / "resnet18-f37072fd.pth",
        "timm:test_vit": tmp_path / "models" / "test_vit.pth",
    }
    for name, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        write({"state_dict": Code(tmp_path / "executed")}, place)
        arguments = (
            {"dataset": "cifar10", "threat": "Linf"}
            if name.startswith("robustbench")
            else {"weights": place}
            if name.startswith("timm")
            else {}
        )
        with pytest.raises(CheckpointError, match="carries code"):
            load_classifier(name, **arguments)
    assert not (tmp_path / "executed").exists()
