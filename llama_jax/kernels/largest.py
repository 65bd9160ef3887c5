"""The largest of a long row, or the `k` largest: by blocks, and on a mesh that cuts the row."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from llama_jax.weights.table import BATCH, TENSOR
from llama_jax.weights.weight import padded_shape


def max_and_argmax(x: Float[Array, "*batch vocab"]) -> tuple[Array, Array]:
    """The largest of each row and its id, of equals the first, in one reduction.

    `jnp.argmax` is the same and gives the id alone.
    """

    def larger(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, i), (y, j) = one, other
        return jnp.where(x > y, x, y), jnp.where((x > y) | ((x == y) & (i < j)), i, j)

    ids = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    least = jnp.array(-jnp.inf, x.dtype), jnp.array(0, jnp.int32)
    return jax.lax.reduce((x, ids), least, larger, (x.ndim - 1,))


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """`jax.lax.top_k` of [batch, ..., vocab] sharded as logits are.

    Each device takes the `k` largest of its own part; then these are gathered. XLA alone would
    gather the whole vocabulary, and the rows as well.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else tuple(axis for axis in TENSOR if mesh.shape.get(axis, 1) > 1)
    rows = () if mesh.empty else tuple(axis for axis in BATCH if mesh.shape[axis] > 1)
    if not axes + rows or x.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
        return by_blocks(x, k)
    lies = P(rows, *[None] * (x.ndim - 2), axes)
    wanted = padded_shape(x.shape, NamedSharding(mesh, lies))  # type: ignore[arg-type]
    more = [(0, n - m) for n, m in zip(wanted, x.shape, strict=True)]

    def found(part: Array) -> tuple[Array, Array]:
        width = part.shape[-1]
        values, ids = by_blocks(part, min(k, width))
        if not axes:
            return values, ids
        ids += jax.lax.axis_index(axes) * width
        gather = functools.partial(jax.lax.all_gather, axis_name=axes, axis=x.ndim - 1, tiled=True)
        best, places = jax.lax.top_k(gather(values), k)
        return best, jnp.take_along_axis(gather(ids), places, axis=-1)

    whole = P(rows)
    mapped = jax.shard_map(found, in_specs=lies, out_specs=(whole, whole), check_vma=False)
    return mapped(jnp.pad(x, more, constant_values=-jnp.inf))


def by_blocks(
    values: Float[Array, "*batch vocab"], k: int
) -> tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]:
    """The `k` largest of each row and their ids, as `jax.lax.top_k`: of equals the lower id first.

    Only the `k` blocks with the largest maxima can hold any of them. So two short sorts replace
    one of the whole vocabulary.
    """
    *batch, vocab = values.shape
    width = max(k, math.isqrt(vocab))
    short = -vocab % width
    blocks = jnp.pad(values.reshape(-1, vocab), ((0, 0), (0, short)), constant_values=-jnp.inf)
    blocks = blocks.reshape(blocks.shape[0], -1, width)
    _, chosen = jax.lax.top_k(jnp.max(blocks, axis=-1), min(k, blocks.shape[1]))
    chosen = jnp.sort(chosen, axis=-1)  # in the order of ids, which decides between equals
    candidates = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1)
    largest, places = jax.lax.top_k(candidates.reshape(blocks.shape[0], -1), k)
    ids = jnp.take_along_axis(chosen, places // width, axis=1) * width + places % width
    return largest.reshape(*batch, k), ids.reshape(*batch, k)
