"""A command's model, loaded while a thread gets ready what will run it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_jax.params import Params


def load(
    checkpoint: Path, dtype: str | None, prepare: Callable[[Params], None] | None = None
) -> Params:
    """`llama_jax.load`; it mostly waits for files, and meanwhile another thread works.

    It imports Flax and the like, and calls `prepare` with the model's shapes.
    """
    import jax  # noqa: F401  before both, which would wait for one another over it

    import llama_jax
    from llama_jax.compilation import keep_programs

    keep_programs()  # before either compiles anything

    def ahead() -> None:
        from llama_jax.checkpoint import shapes

        # Whatever is wrong with the files or the settings will be said by who really uses them.
        with contextlib.suppress(Exception):
            if prepare is not None:
                prepare(shapes(checkpoint, dtype=dtype))

    thread = threading.Thread(target=ahead)
    thread.start()
    params = llama_jax.load(checkpoint, dtype=dtype)
    thread.join()
    return params
