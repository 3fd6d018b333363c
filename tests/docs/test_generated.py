"""The pages that follow from the code are those that it gives."""

import importlib.util
import subprocess
import sys

import pytest
from pages import DOCS, ROOT


def generator():
    found = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["command-line.md", "configuration.md"])
def test_the_committed_page_is_the_generated_one(page):
    written = (DOCS / "reference" / page).read_text()
    assert written == generator().PAGES[page](), "run `python docs/generate.py`"


def test_every_command_and_option_is_on_the_page():
    page = generator().command_line()
    for text in ("## `purify bench`", "## `purify models fetch`", "`--set KEY=VALUE`", "`fashion-mnist/bench`"):
        assert text in page


def test_the_page_of_commands_needs_no_torch():
    code = "import runpy, sys; runpy.run_path('docs/generate.py')['command_line'](); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip() == "False", found.stderr
