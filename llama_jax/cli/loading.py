"""A command's model, loaded while a thread gets ready what will run it."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_jax.weights.params import Params


def load_ahead(
    checkpoint: Path,
    prepare: Callable[[Params], Iterator[None]],
    meanwhile: Callable[[], None] = lambda: None,
    **how: Any,
) -> tuple[Params, Callable[[], None]]:
    """The model, once its weights are read and the first step of `prepare` is done.

    `prepare` is given the weights' shapes, in a thread, and goes on in it; the function returned
    waits for its end. This thread does `meanwhile` before it reads the weights. `how` is what
    `llama_jax.load` takes: `dtype`, `quantize`, `adapter`.
    """
    import jax  # noqa: F401  before both, which would wait for one another over it

    import llama_jax
    from llama_jax.compilation import keep_programs

    keep_programs()  # before either compiles anything
    first, abandoned = threading.Event(), threading.Event()

    def ahead() -> None:
        # Whatever is wrong with the files or the settings will be said by who really uses them.
        with _short_turns(), contextlib.suppress(Exception):
            from llama_jax.checkpoint import shapes

            for _ in prepare(shapes(checkpoint, **how)):
                first.set()
                if abandoned.is_set():
                    break
        first.set()

    thread = threading.Thread(target=ahead)
    thread.start()
    try:
        meanwhile()
        params = llama_jax.load(checkpoint, **how)
        first.wait()
    except BaseException:
        abandoned.set()
        thread.join()
        raise
    return params, thread.join


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """While this thread computes, one that waited for a file or a device soon has Python back."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 10)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
