"""A command's model, loaded while the modules that will run it are imported."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_jax.params import Params


def load(checkpoint: Path, dtype: str | None) -> Params:
    """`llama_jax.load`, which mostly waits for files: another thread imports Flax meanwhile."""
    import jax  # noqa: F401  before both, which would wait for one another over it

    import llama_jax

    ahead = threading.Thread(target=importlib.import_module, args=("llama_jax.chat",))
    ahead.start()
    try:
        return llama_jax.load(checkpoint, dtype=dtype)
    finally:
        ahead.join()
