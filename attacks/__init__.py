"""Attacks on any model that maps images in [0, 1] to logits, deterministic or random.

What is public stands in `__init__.pyi`, and is imported when it is first asked for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
