"""The Python examples of the pages run, page by page, each block after the one before it.

The README's one runs in a process of its own, see `tests/test_packaging.py`.
"""

import pytest
import torch
from pages import PAGES, ROOT, name
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

MARKS = ("```python\n", "<!-- invisible-code-block: python")
README = ROOT / "README.md"
WITH_EXAMPLES = [page for page in PAGES if page != README and any(mark in page.read_text() for mark in MARKS)]
MOST_SKIPPED = 4


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name)
def test_the_examples_run(page):
    for example in Document.parse(str(page), PythonCodeBlockParser(), SkipParser()):
        example.evaluate()


def test_there_are_examples_and_few_are_skipped():
    assert README.read_text().count(MARKS[0]) == 1
    texts = [page.read_text() for page in PAGES]
    assert sum(text.count(MARKS[0]) for text in texts) >= 10
    assert sum(text.count("<!-- skip:") for text in texts) <= MOST_SKIPPED


def test_an_example_that_fails_is_seen(tmp_path):
    """The parsers above find blocks of this form, and what they raise arrives."""
    page = tmp_path / "page.md"
    page.write_text("<!-- skip: next -->\n```python\n1 / 0\n```\n\n```python\nassert False, 'seen'\n```\n")
    with pytest.raises(AssertionError, match="seen"):
        for example in Document.parse(str(page), PythonCodeBlockParser(), SkipParser()):
            example.evaluate()
