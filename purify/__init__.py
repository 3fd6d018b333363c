"""Diffusion-based adversarial purification: a diffusion model in front of any image classifier.

What is public stands in `__init__.pyi`. It is imported when it is first asked for: `purify --help` needs no torch.
"""

import lazy_loader

from purify import moved

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"

moved.install("purify", moved.PURIFY)
