"""CPU form: the feed-forward layer of many rows, by blocks of its hidden width.

    each turn   a block of w1 and of w3, decoded      their part of the hidden activations [n, size]
                the same inputs of w2, decoded        added to the result [n, dim]

So the hidden activations [n, hidden] never exist, and no turn copies its part into them, which XLA
would do on one core. docs/notes/performance.md has what was measured.
"""

from __future__ import annotations

import jax
from jaxtyping import Array

from llama_jax.kernels.quantized_blocks import NUMBERS, block, cut, in_order
from llama_jax.kernels.quantized_cpu import MANY, product, zeros
from llama_jax.ops.linear import dot
from llama_jax.ops.swiglu import swiglu
from llama_jax.weights.groups import group_of
from llama_jax.weights.int4 import GROUP, Int4
from llama_jax.weights.weight import Weight

PANELS, WIDEST = 128, 512
"""The width of a block is a multiple of PANELS: XLA's library hands out 64 columns at a time, and
two cores are to get as many. It is at most WIDEST: wider blocks were slower. `Int4` copies its
inputs into another order, and takes half of WIDEST: no slower, and 7 MB less."""


def feed_forward(x: Array, w1: Weight, w3: Weight, w2: Weight) -> Array:
    """`swiglu(x @ w1, x @ w3) @ w2` of rows [n, dim]."""
    size = width_of_block(w1, w3, w2) if len(x) >= MANY else 0
    if size and jax.sharding.get_abstract_mesh().empty:
        return _by_hidden(x, w1, w3, w2, size)
    return product(swiglu(product(x, w1), product(x, w3)), w2)


def width_of_block(w1: Weight, w3: Weight, w2: Weight) -> int:
    """How much of the hidden width a turn takes, at most half of it; 0 where nothing divides it."""
    if any(w.parts()["minimum"].ndim == 1 for w in (w1, w3, w2) if "minimum" in w.parts()):
        return 0  # these are added to a whole sum of inputs
    hidden, outputs = w2.shape
    group = GROUP if isinstance(w2, Int4) else group_of(w2.parts()["scale"], hidden) or 1
    widest = WIDEST // 2 if isinstance(w2, Int4) else WIDEST
    most = min(hidden // 2, widest, max(PANELS, NUMBERS // max(w1.shape[0], outputs)))
    sizes = range(most // PANELS * PANELS, 0, -PANELS)
    return next((size for size in sizes if hidden % size == 0 and size % group == 0), 0)


def _by_hidden(x: Array, w1: Weight, w3: Weight, w2: Weight, size: int) -> Array:
    rows = x.astype("float32")
    inputs = [in_order(rows, w, w.shape[0]) for w in (w1, w3)]

    def part(x: Array, w: Weight, i: Array) -> Array:
        sums, scale = dot(x, block(w, i, size, axis=1), over=0), w.parts()["scale"]
        return sums * cut(scale, i, size, axis=0).astype(sums.dtype) if scale.ndim == 1 else sums

    def add(i: Array, sums: Array) -> Array:
        gate, up = (part(x_, w, i).astype(x.dtype) for x_, w in zip(inputs, (w1, w3), strict=True))
        h = in_order(swiglu(gate, up).astype(rows.dtype), w2, size)
        return sums + dot(h, block(w2, i, size, axis=0), over=0)

    sums = jax.lax.fori_loop(0, w2.shape[0] // size, add, zeros(rows, w2.shape[1]))
    scale = w2.parts()["scale"]
    return (sums * scale.astype(sums.dtype) if scale.ndim == 1 else sums).astype(x.dtype)
