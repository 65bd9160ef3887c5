"""LLaMA in JAX: `load` a checkpoint, `generate` text, or take `forward` apart.

A name is imported when it is first used, so a program pays only for what it uses. The names are
listed in `__init__.pyi`, which type checkers read too.
"""

import lazy_loader as _lazy_loader

__version__ = "0.1.0"
__getattr__, _public_names, __all__ = _lazy_loader.attach_stub(__name__, __file__)


def __dir__() -> list[str]:
    """The public names, and Python's own; not the rooms, which show once they are imported."""
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
