"""A weight of 4-bit integers, 32 of them in four words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from llama_jax.ops.linear import linear, linear_transposed
from llama_jax.pytrees import register_dataclass
from llama_jax.weights.groups import check_scales, scale_axes, scales_of_rows, spread
from llama_jax.weights.rounding import rounded_int4
from llama_jax.weights.weight import Layout, PartAxis, register_weight

GROUP, WORDS, NIBBLES = 32, 4, 8
"""Inputs that share a scale, words that hold them, and numbers in a word."""
MIDDLE = 8
"""Subtracted from an unsigned number where there are no minima: 0 to 15 stand for -8 to 7."""


@register_weight
@register_dataclass
@dataclasses.dataclass(frozen=True)
class Int4:
    """A weight [in, out] of 4-bit integers `q` from 0 to 15, with a scale for each 32 inputs.

    Each number is `(q - 8) * scale`, or `q * scale + minimum` where there are minima. Scales and
    minima are [in / 32, out]. The int32 words are [4, in / 32, out]: bits 4n to 4n + 3 of
    `words[j, g, o]` hold input 32g + 8j + n of output o. So a processor unpacks 4 x 8 numbers of
    all outputs by a mask each, and reads every word in the order of memory.
    """

    kind: ClassVar[str] = "int4"

    words: Array
    scale: Array
    minimum: Array | None = None
    dtype: np.dtype = dataclasses.field(default=np.dtype("float32"), metadata={"static": True})
    """The activations' dtype."""

    @classmethod
    def of(cls, array: Any) -> Self:
        """An array [in, out] rounded; each scale is the best found by squared error.

        ValueError unless 32 divides the inputs.
        """
        integers, scale = rounded_int4(array, GROUP)
        return cls(packed(integers), scale, None, np.dtype(array.dtype))

    @classmethod
    def of_integers(
        cls, integers: Any, scale: Any, minimum: Any = None, *, dtype: Any = jnp.float32
    ) -> Self:
        """The weight of integers [in, out] from 0 to 15, uint8, and their scales, kept as given.

        Without minima 0 to 15 stand for -8 to 7. ValueError where the shapes do not fit.
        """
        if np.dtype(integers.dtype) != np.uint8:
            raise ValueError(
                f"integers are {np.dtype(integers.dtype)}; give them as uint8, 0 to 15"
            )
        _check(tuple(integers.shape), scale, minimum)
        return cls(packed(integers), scale, minimum, np.dtype(dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.words.shape[1] * GROUP, self.words.shape[2])

    def integers(self) -> Array:
        """The integers from 0 to 15, uint8 [in, out]."""
        shifts = jnp.arange(0, 4 * NIBBLES, 4, dtype=jnp.int32).reshape(1, NIBBLES, 1, 1)
        nibbles = (jnp.asarray(self.words)[:, None] >> shifts) & 15
        return nibbles.transpose(2, 0, 1, 3).reshape(self.shape).astype(jnp.uint8)

    def matmul(self, x: Array) -> Array:
        """`x @ w`; the reference of the faster forms in `kernels/quantized.py`."""
        return linear(x, self.dense())

    def matmul_transposed(self, x: Array) -> Array:
        return linear_transposed(x, self.dense())

    def rows(self, ids: Array) -> Array:
        word, nibble = ids % GROUP // NIBBLES, ids % NIBBLES
        words = jnp.asarray(self.words)[word, ids // GROUP]
        numbers = ((words >> (4 * nibble)[..., None]) & 15).astype(jnp.float32)
        scale = scales_of_rows(self.scale, ids, self.shape[0])
        if self.minimum is None:
            return ((numbers - MIDDLE) * scale).astype(self.dtype)
        minimum = scales_of_rows(self.minimum, ids, self.shape[0])
        return (numbers * scale + minimum).astype(self.dtype)

    def dense(self) -> Array:
        """The weight as a float32 array [in, out]."""
        numbers, inputs = self.integers().astype(jnp.float32), self.shape[0]
        if self.minimum is None:
            return (numbers - MIDDLE) * spread(self.scale, inputs)
        return numbers * spread(self.scale, inputs) + spread(self.minimum, inputs)

    def parts(self) -> dict[str, Any]:
        parts = {"words": self.words, "scale": self.scale}
        return parts if self.minimum is None else parts | {"minimum": self.minimum}

    def layout(self) -> Layout:
        axes = {name: scale_axes(self.scale, self.shape[0]) for name in self.parts()}
        return axes | {"words": (PartAxis(None, size=WORDS), PartAxis(0, per=GROUP), PartAxis(1))}

    def constants(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, Any], constants: Mapping[str, Any], dtype: np.dtype
    ) -> Self:
        words, scale, minimum = parts["words"], parts["scale"], parts.get("minimum")
        size = tuple(words.shape)
        if constants or np.dtype(words.dtype) != np.int32 or len(size) != 3 or size[0] != WORDS:
            raise ValueError(
                f"words of shape {list(size)} and {np.dtype(words.dtype)} are not int32 [4, in / "
                f"32, out]; constants={dict(constants)} should be none"
            )
        _check((size[1] * GROUP, size[2]), scale, minimum)
        return cls(words, scale, minimum, np.dtype(dtype))


def packed(integers: Any) -> Any:
    """Integers from 0 to 15, uint8 [in, out], as words [4, in / 32, out], on host or device."""
    xp: Any = np if isinstance(integers, np.ndarray) else jnp
    inputs, outputs = integers.shape
    parts = integers.reshape(inputs // GROUP, WORDS, NIBBLES, outputs)
    words = xp.zeros((WORDS, inputs // GROUP, outputs), xp.uint32)
    for nibble in range(NIBBLES):
        part = parts[:, :, nibble].swapaxes(0, 1).astype(xp.uint32)
        words = words | (part << xp.uint32(4 * nibble))
    return words.view(xp.int32)


def _check(shape: tuple[int, ...], scale: Any, minimum: Any) -> None:
    if len(shape) != 2 or shape[0] % GROUP:
        raise ValueError(
            f"a weight of shape {list(shape)} has no whole groups of {GROUP} inputs; take Int8, "
            "whose scales may be one an output"
        )
    scales = {"scale": scale} if minimum is None else {"scale": scale, "minimum": minimum}
    check_scales(Int4.kind, shape, scales)
    if tuple(scale.shape) != (shape[0] // GROUP, shape[1]):
        raise ValueError(
            f"scale of shape {list(scale.shape)} is not one for each {GROUP} inputs of each "
            f"output, [{shape[0] // GROUP}, {shape[1]}]"
        )
