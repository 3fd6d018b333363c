"""What is imported when, and what a user gets from the wheel."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import purify

ROOT = Path(purify.__file__).parents[1]


def test_only_the_launcher_knows_its_siblings():
    """`make check` holds who imports whom; it cannot see an import by name, which plug-ins need."""
    users = [
        str(file.relative_to(ROOT))
        for package in ("purify", "attacks")
        for file in (ROOT / package).rglob("*.py")
        if "import_module" in file.read_text()
    ]
    assert sorted(users) == ["purify/__main__.py", "purify/moved.py", "purify/plugins.py"]


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)], capture_output=True, text=True, **options
    )


def test_import_purify_imports_no_sibling_and_no_extra():
    """Not even when everything public was asked for."""
    heavy = ("benchmarks", "torchvision", "robustbench", "timm", "matplotlib", "pyautoattack")
    code = (
        "import sys, purify; [getattr(purify, name) for name in purify.__all__]; found = 'attacks' in sys.modules;"
        " import attacks; [getattr(attacks, name) for name in attacks.__all__];"
        f" print(found, [name for name in {heavy} if name in sys.modules])"
    )
    assert run("-c", code).stdout == "False []\n"


def test_a_foreign_package_of_the_same_name_is_named(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text("")
    result = run("-m", "purify", "bench", cwd=tmp_path)
    assert result.returncode == 2
    assert str(tmp_path / "benchmarks") in result.stderr and str(ROOT / "benchmarks") in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory):
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not a checkout: there is nothing to build a wheel from")
    folder = tmp_path_factory.mktemp("wheel")
    built = run("-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < 12 * 2**20  # of which 10 are weights: results of runs are not in it
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_works_from_any_directory(unpacked_wheel, tmp_path):
    """From another folder, with the unpacked wheel first on the path and a foreign `benchmarks` folder at hand."""
    (tmp_path / "elsewhere" / "benchmarks").mkdir(parents=True)
    code = (
        f"import sys; sys.path.insert(0, {str(unpacked_wheel)!r}); import purify; assert"
        f" purify.__file__.startswith({str(unpacked_wheel)!r}); "
    )
    code += "from purify.__main__ import main; sys.argv[0] = 'purify'; main()"
    options = [
        "--out",
        tmp_path / "out",
        "--set",
        "data.images=2",
        "--set",
        "draws=2",
        "--set",
        "attacks.0.steps=1",
        "--set",
        "attacks.0.eot=1",
    ]
    result = run("-P", "-c", code, "bench", *options, cwd=tmp_path / "elsewhere")
    assert result.returncode == 0, result.stderr
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text())["results"]) == 4


def test_the_wheel_holds_licences_and_configs(unpacked_wheel):
    names = {str(p.relative_to(unpacked_wheel)) for p in unpacked_wheel.rglob("*")}
    assert {
        *(
            f"{package}/{name}"
            for package in ("purify", "attacks", "benchmarks")
            for name in ("py.typed", "__init__.pyi")
        ),
        "benchmarks/configs/fashion-mnist/bench.yaml",
        "benchmarks/datasets/packaged/LICENSE.fashion-mnist",
        "purify/zoo/weights/fashion-mnist.score.safetensors",
        "purify/zoo/weights/cifar10-small.score.safetensors",
        "benchmarks/configs/cifar10/reference.yaml",
    } <= names
    assert not any(name.startswith("tests") for name in names)


def test_readme_example_runs():
    """The README's Python example, as it stands there."""
    text = (
        (ROOT / "README.md").read_text()
        if (ROOT / "README.md").is_file()
        else pytest.skip("not a checkout: there is no README")
    )
    example = text.split("```python\n", 1)[1].split("```", 1)[0]
    assert len(example.strip().splitlines()) <= 20
    result = run("-c", example)
    assert result.returncode == 0, result.stderr
    assert "[" in result.stdout


def test_help_names_every_command():
    result = run("-m", "purify", "--help")
    assert result.returncode == 0
    assert all(
        command in result.stdout
        for command in ("audit", "bench", "clean", "models", "report", "rivals", "speed", "train")
    )
