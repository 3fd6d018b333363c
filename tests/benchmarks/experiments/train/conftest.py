"""What the tests of `purify train` share."""

import functools

import pytest

from benchmarks.reports import card_figures


@pytest.fixture(autouse=True)
def quick_samples(monkeypatch):
    """The pictures at the end of a training, with fewer steps."""
    monkeypatch.setattr(card_figures, "save_samples", functools.partial(card_figures.save_samples, steps=10))
