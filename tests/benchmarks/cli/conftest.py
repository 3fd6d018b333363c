"""What the tests of `purify models` share."""

import pytest
from models_command import STATE, as_file

from purify.zoo import registry


@pytest.fixture
def weights(tmp_path):
    return as_file(STATE, tmp_path / "made.pt")


@pytest.fixture
def known(monkeypatch, tmp_path):
    """known(entry...) puts entries into an otherwise empty registry; models and data are kept in tmp_path."""
    monkeypatch.setenv("PURIFY_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PURIFY_DATA", str(tmp_path / "data"))

    def put(*entries):
        monkeypatch.setattr(registry, "entries", lambda: {entry.name: entry for entry in entries})

    return put
