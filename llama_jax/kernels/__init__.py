"""Which attention runs where: a GPU's kernels where they can be had, XLA's own elsewhere.

A kernel is opaque to XLA, which could not cut it over a mesh: each device runs it on its own rows
and heads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.ops.attention import Slots, step_attention
from llama_jax.sharding.arrays import CACHE, LENGTHS, NEW_KEYS, QUERIES, cuts_evenly, on_each_device

Queries = Float[Array, "batch time heads head_dim"]
NewKeys = Float[Array, "batch time kv_heads head_dim"]
Lengths = Int[Array, " batch"]


def fastest_attention(
    q: Queries,
    k: NewKeys,
    v: NewKeys,
    past: tuple[Slots, Slots] | None,
    lengths: Lengths,
) -> Queries:
    """What a step's queries read from the first `lengths` slots of `past` and from its own keys.

    Positions ascend by one along time, so a step's own keys are causal by index. Where there is no
    kernel for it, `step_attention` serves. A program holds what its platform can run.
    """
    otherwise = functools.partial(step_attention, q, k, v, past, lengths)
    if not (cuts_evenly(q, QUERIES) and cuts_evenly(k, NEW_KEYS)):
        return otherwise()
    if past is None and q.shape[1] > 1 and has_prompt_kernel(q.dtype, q.shape[-1]):
        on_gpu = on_each_device(_prompt, (QUERIES, NEW_KEYS, NEW_KEYS), QUERIES)
        return jax.lax.platform_dependent(cuda=lambda: on_gpu(q, k, v), default=otherwise)
    if past is not None and q.shape[1] == 1 and _has_step_kernel_for(q, past[0]):
        on_gpu = on_each_device(
            _step, (QUERIES, NEW_KEYS, NEW_KEYS, CACHE, CACHE, LENGTHS), QUERIES
        )
        return jax.lax.platform_dependent(
            cuda=lambda: on_gpu(q, k, v, *past, lengths), default=otherwise
        )
    return otherwise()


@functools.cache
def has_prompt_kernel(dtype: jnp.dtype, head_dim: int) -> bool:
    """Whether this process's GPU has cuDNN's attention for such heads. Tried once."""
    x = jax.ShapeDtypeStruct((1, 64, 1, head_dim), dtype)
    return _compiles_on_gpu(_prompt, x, x, x)


@functools.cache
def has_step_kernel(
    dtype: jnp.dtype, past_dtype: jnp.dtype, *, group: int, slots: int, head_dim: int
) -> bool:
    """Whether this process's GPU runs our kernel for such queries over so many slots. Tried once.

    `group` is how many query heads share a key head.
    """
    q = jax.ShapeDtypeStruct((1, 1, group, head_dim), dtype)
    own = jax.ShapeDtypeStruct((1, 1, 1, head_dim), dtype)
    past = jax.ShapeDtypeStruct((1, 1, slots, head_dim), past_dtype)
    return _compiles_on_gpu(_step, q, own, own, past, past, jax.ShapeDtypeStruct((1,), jnp.int32))


def _has_step_kernel_for(q: Queries, past: Slots) -> bool:
    _, kv_heads, slots, head_dim = past.shape
    group = q.shape[2] // kv_heads
    return has_step_kernel(q.dtype, past.dtype, group=group, slots=slots, head_dim=head_dim)


def _prompt(q: Queries, k: NewKeys, v: NewKeys) -> Queries:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


@jax.jit  # lowered once, not once a layer
def _step(
    q: Queries, k: NewKeys, v: NewKeys, past_k: Slots, past_v: Slots, lengths: Lengths
) -> Queries:
    # Pallas takes a tenth of a second to import, which a CPU need not wait for.
    from llama_jax.kernels.decode_attention import decode_attention

    return decode_attention(q, k, v, (past_k, past_v), lengths)


def _compiles_on_gpu(f: Callable[..., Array], *args: jax.ShapeDtypeStruct) -> bool:
    if jax.default_backend() != "gpu":
        return False
    # In a thread of its own, which knows nothing of the mesh and the trace that ask.
    with ThreadPoolExecutor(1) as elsewhere:
        tried = elsewhere.submit(lambda: jax.jit(f).lower(*args).compile())
    return tried.exception() is None  # a library missing or old, a shape refused
