"""Stands in for jaxtyping where a machine lacks it: its names annotate, and check nothing."""

from __future__ import annotations

from typing import Any

import jax

Array = PRNGKeyArray = jax.Array


class _Shaped:
    """`Float[Array, "batch dim"]` is any value."""

    def __class_getitem__(cls, _: Any) -> Any:
        return Any


Bool = Complex64 = Float = Float32 = Int = Int32 = UInt32 = _Shaped
