"""What every run needs: its folder, its environment, its progress, and names for what it depends on.

What is public stands in `__init__.pyi`, and is imported when it is first asked for: a folder needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
