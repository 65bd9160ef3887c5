"""JAX's settings under which our functions are traced and run, whatever a process has set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

AS_TRACED: dict[str, tuple[Any, Any]] = {
    "jax_numpy_rank_promotion": ("allow", jax.numpy_rank_promotion),
    "jax_numpy_dtype_promotion": ("standard", jax.numpy_dtype_promotion),
    "jax_default_matmul_precision": (None, jax.default_matmul_precision),
}
"""Settings of JAX under which our functions would fail, or compute something else. Each has the
value for which the functions are written, and JAX's way to set it for a while. They hold for our
part of a user's trace too."""
AS_RUN = AS_TRACED | {
    "jax_enable_x64": (False, jax.enable_x64),
    "jax_disable_jit": (False, jax.disable_jit),
}
"""The same for programs that are our own from beginning to end."""


@contextlib.contextmanager
def as_written(settings: dict[str, tuple[Any, Any]]) -> Iterator[None]:
    """A context in which JAX has these settings, whatever a process has set."""
    with contextlib.ExitStack() as stack:
        for name, (wanted, setting) in settings.items():
            if getattr(jax.config, name) != wanted:
                stack.enter_context(setting(wanted))
        yield
