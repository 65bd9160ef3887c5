"""GPU kernels for attention (cuDNN's for prompts, our own for decode steps), and the products of
every platform but a CPU.

A kernel is opaque to XLA, which cannot cut it over a mesh: `per_device` runs it on each device's
own rows and heads. Whether this process's GPU has a kernel is found out by compiling it once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from llama_jax.kernels.paged import Pages, Pool, Table
from llama_jax.kernels.rows import in_pairs, over_rows
from llama_jax.ops.attention import Lengths, NewKeys, Queries, Slots
from llama_jax.ops.linear import dot
from llama_jax.sharding.arrays import per_device
from llama_jax.sharding.specs import CACHE, LENGTHS, NEW_KEYS, QUERIES


@over_rows
def product(x: Array, w: Array, over: int) -> Array:
    """`dot(x, w, over)` of rows [n, in]."""
    return in_pairs(x, lambda rows: dot(rows, w, over).astype(x.dtype))


def prompt_attention(q: Queries, k: NewKeys, v: NewKeys) -> Queries:
    """Causal attention of a prompt's tokens to one another, by cuDNN on each device."""
    return per_device(prompt_kernel, (QUERIES, NEW_KEYS, NEW_KEYS), QUERIES)(q, k, v)


def step_attention(
    q: Queries, k: NewKeys, v: NewKeys, past: tuple[Array, ...], lengths: Lengths
) -> Queries:
    """Attention of one new token a row to its past, by our kernel on each device.

    `past` is keys and values, and of int8 their scales too.
    """
    specs = (QUERIES, NEW_KEYS, NEW_KEYS, tuple(P(*CACHE[: x.ndim]) for x in past), LENGTHS)
    return per_device(step_kernel, specs, QUERIES)(q, k, v, past, lengths)


def paged_step_attention(
    q: Queries, k: NewKeys, v: NewKeys, past: Pages, lengths: Lengths
) -> Queries:
    """Attention of one new token a row to its past in pages, by our kernel on one device."""
    scales = () if past.k_scale is None else (past.k_scale, past.v_scale)
    return step_kernel(q, k, v, (past.k, past.v, *scales), lengths, past.table)


@functools.cache
def has_prompt_kernel(dtype: jnp.dtype, head_dim: int) -> bool:
    """Whether this process's GPU has cuDNN's attention for such heads."""
    x = jax.ShapeDtypeStruct((1, 64, 1, head_dim), dtype)
    return compiles_here(prompt_kernel, x, x, x)


@functools.cache
def has_training_kernel(dtype: jnp.dtype, head_dim: int) -> bool:
    """Whether this process's GPU has cuDNN's attention for such heads, and its gradient."""
    x = jax.ShapeDtypeStruct((1, 64, 1, head_dim), dtype)
    total = lambda q, k, v: jnp.sum(prompt_kernel(q, k, v).astype(jnp.float32))  # noqa: E731
    return compiles_here(jax.grad(total, argnums=(0, 1, 2)), x, x, x)


@functools.cache
def has_step_kernel(
    dtype: jnp.dtype, past_dtype: jnp.dtype, *, group: int, slots: int, head_dim: int
) -> bool:
    """Whether this process's GPU runs our kernel for such queries over so many slots.

    `group` is how many query heads share a key head.
    """
    q = jax.ShapeDtypeStruct((1, 1, group, head_dim), dtype)
    own = jax.ShapeDtypeStruct((1, 1, 1, head_dim), dtype)
    past = _past_like((1, 1, slots, head_dim), past_dtype)
    return compiles_here(step_kernel, q, own, own, past, jax.ShapeDtypeStruct((1,), jnp.int32))


def has_step_kernel_for(q: Queries, past: Slots) -> bool:
    """`has_step_kernel` for these arrays."""
    _, kv_heads, slots, head_dim = past.shape
    group = q.shape[2] // kv_heads
    return has_step_kernel(q.dtype, past.dtype, group=group, slots=slots, head_dim=head_dim)


@functools.cache
def has_paged_step_kernel(
    dtype: jnp.dtype, past_dtype: jnp.dtype, *, group: int, page: int, head_dim: int
) -> bool:
    """Whether this process's GPU runs our kernel for such queries over pages of so many slots."""
    q = jax.ShapeDtypeStruct((1, 1, group, head_dim), dtype)
    own = jax.ShapeDtypeStruct((1, 1, 1, head_dim), dtype)
    pool = _past_like((2, 1, page, head_dim), past_dtype)
    length, table = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1,), (1, 2)))
    return compiles_here(step_kernel, q, own, own, pool, length, table)


def has_paged_step_kernel_for(q: Queries, pool: Pool) -> bool:
    """`has_paged_step_kernel` for these arrays."""
    _, kv_heads, page, head_dim = pool.shape
    group = q.shape[2] // kv_heads
    return has_paged_step_kernel(q.dtype, pool.dtype, group=group, page=page, head_dim=head_dim)


def _past_like(shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Keys and values of this dtype; of integers their scales too."""
    past, scale = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape[:3], jnp.float32)
    return (past, past, scale, scale) if jnp.issubdtype(dtype, jnp.integer) else (past, past)


def prompt_kernel(q: Queries, k: NewKeys, v: NewKeys) -> Queries:
    """cuDNN's attention: each query sees the keys up to its own."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


@jax.jit  # lowered once, not once a layer
def step_kernel(
    q: Queries,
    k: NewKeys,
    v: NewKeys,
    past: tuple[Array, ...],
    lengths: Lengths,
    table: Table | None = None,
) -> Queries:
    """Our own kernel, `decode_attention.decode_attention`."""
    # Pallas takes a tenth of a second to import, which a CPU need not wait for.
    from llama_jax.kernels.decode_attention import decode_attention

    return decode_attention(q, k, v, past, lengths, table=table)  # type: ignore[arg-type]


def compiles_here(f: Callable[..., Array], *args: Any) -> bool:
    """Whether this process has a GPU, and `f` of such arguments compiles for it."""
    if jax.default_backend() != "gpu":
        return False
    # In a thread of its own, because JAX's current mesh and trace belong to a thread.
    with ThreadPoolExecutor(1) as elsewhere:
        tried = elsewhere.submit(lambda: jax.jit(f).lower(*args).compile())
    return tried.exception() is None  # a library missing or old, a shape refused
