"""Where downloaded weights and files that can be made again are kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/purify, by default ~/.cache/purify."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "purify"


def models_folder() -> Path:
    """Weights from other people: $PURIFY_MODELS, by default `models` in the cache folder."""
    given = os.environ.get("PURIFY_MODELS")
    return Path(given) if given else cache_folder() / "models"
