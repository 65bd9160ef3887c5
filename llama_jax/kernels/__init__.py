"""LLaMA's arithmetic, computed fast: the functions that the model and generation call.

A function of the name of one in `ops` computes what that one does. `causal_attention` and
`paged_attention` are `ops.attention` over no past and over pages, `gated` is three products and
`swiglu`, `argmax` and `top_k` are JAX's. Tests hold them equal. A program gets the implementation
of the platform that it is compiled for. What a platform is given besides is from `platforms.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Complex64, Float, Int

from llama_jax.kernels import blockwise, causal, gpu, paged, quantized
from llama_jax.kernels.forms import by_platform
from llama_jax.kernels.largest import top_k
from llama_jax.kernels.platforms import (
    COMPILER_OPTIONS,
    PLANNED_PLATFORM,
    cache_dtype,
    computes_again,
    devices_can_be_made,
    flash_attends,
    keeps_collective_order,
    multiplies_by_outputs,
    on_platform,
    tokens_in_cache,
    weight_dtype,
)
from llama_jax.ops import embedding, rope
from llama_jax.ops.attention import Lengths, NewKeys, Queries
from llama_jax.sharding.arrays import cuts_evenly, per_device
from llama_jax.sharding.specs import LENGTHS, NEW_KEYS, POOL, QUERIES, TABLE
from llama_jax.weights.by_outputs import ByOutputs
from llama_jax.weights.hadamard import Hadamard
from llama_jax.weights.lora import Lora
from llama_jax.weights.weight import Weight, is_value

__all__ = [
    "COMPILER_OPTIONS",
    "PLANNED_PLATFORM",
    "argmax",
    "attention",
    "cache_dtype",
    "causal_attention",
    "computes_again",
    "devices_can_be_made",
    "embed",
    "flash_attends",
    "gated",
    "has_gated_form",
    "keeps_collective_order",
    "linear",
    "linear_transposed",
    "max_and_argmax",
    "multiplies_by_outputs",
    "on_platform",
    "paged_attention",
    "rotations",
    "tokens_in_cache",
    "top_k",
    "top_k_keeps",
    "top_p_keeps",
    "weight_dtype",
]


@jax.jit  # traced and lowered once a shape, not once a layer
def linear(
    x: Float[Array, "*batch in_dim"], w: Float[Array, "in_dim out_dim"] | Weight
) -> Float[Array, "*batch out_dim"]:
    """`x @ w`."""
    if type(w) in PRODUCTS:
        return PRODUCTS[type(w)](x, w)
    return w.matmul(x) if is_value(w) else by_platform("linear", x, w)


@jax.jit
def linear_transposed(
    x: Float[Array, "*batch in_dim"], w: Float[Array, "out_dim in_dim"] | Weight
) -> Float[Array, "*batch out_dim"]:
    """`x @ w.T`: the output of a model whose output weight is its embedding, [vocab, dim]."""
    if isinstance(w, quantized.QUANTIZED):
        return quantized.linear_transposed(x, w)
    return w.matmul_transposed(x) if is_value(w) else by_platform("linear_transposed", x, w)


PRODUCTS: dict[type, Callable[[Array, Any], Array]] = {
    **dict.fromkeys(quantized.QUANTIZED, quantized.linear),
    Lora: lambda x, w: linear(x, w.base) + w.added(x),
    Hadamard: lambda x, w: linear(w.turned(x), w.inner),
    ByOutputs: lambda x, w: linear_transposed(x, w.values),
}
"""`x @ w` for the kinds of weight that have a faster form than their own `matmul`, and for those
that hold a weight of such a kind."""


def has_gated_form(weights: Mapping[str, Any]) -> bool:
    """Whether `gated` computes a feed-forward layer of these weights.

    It does where they are quantized, lie on one device and have no biases.
    """
    ours = all(isinstance(w, quantized.QUANTIZED) for w in weights.values())
    return ours and jax.sharding.get_abstract_mesh().empty


def gated(
    x: Float[Array, "*batch dim"], w1: Weight, w3: Weight, w2: Weight
) -> Float[Array, "*batch dim"]:
    """`swiglu(x @ w1, x @ w3) @ w2` of quantized weights (`has_gated_form`)."""
    return quantized.feed_forward(x, w1, w3, w2)


def embed(
    table: Float[Array, "vocab dim"] | Weight, ids: Int[Array, "*batch"]
) -> Float[Array, "*batch dim"]:
    """The rows of an embedding with these ids."""
    if is_value(table):
        return table.rows(ids)
    if ids.size == 1:
        # For one row of a table cut over a mesh, XLA gathers the whole table; for two it does not.
        return embed(table, jnp.pad(ids.reshape(1), (0, 1)))[:1].reshape(*ids.shape, -1)
    if table.dtype.itemsize < 4:
        return by_platform("embed", table, ids)
    return embedding.embed(table, ids)  # type: ignore[arg-type]  # no value


def rotations(
    positions: Int[Array, "batch time"], frequencies: rope.Frequencies
) -> Complex64[Array, "batch time half_head_dim"]:
    """The rotation of each pair at each position, computed once for all layers.

    Without the barrier XLA computes cosine and sine again in every layer, and on a CPU for every
    element of every head.
    """
    found = rope.rotations(positions, frequencies)
    parts = jax.lax.optimization_barrier(jnp.stack([jax.lax.real(found), jax.lax.imag(found)]))
    return jax.lax.complex(parts[0], parts[1])


def attention(
    q: Queries, k: NewKeys, v: NewKeys, past: tuple[Array, ...] | None, lengths: Lengths
) -> Queries:
    """Attention of a step's queries over the first `lengths` slots of `past` and over its own keys.

    `past` is keys and values, and of int8 their scales too. A GPU takes cuDNN's kernel for a prompt
    and ours for a decode step, where it has them.
    """
    otherwise = functools.partial(blockwise.attention, q, k, v, past, lengths)
    if not (cuts_evenly(q, QUERIES) and cuts_evenly(k, NEW_KEYS)):
        return otherwise()
    if past is None and q.shape[1] > 1 and gpu.has_prompt_kernel(q.dtype, q.shape[-1]):
        kernel = functools.partial(gpu.prompt_attention, q, k, v)
    elif past is not None and q.shape[1] == 1 and gpu.has_step_kernel_for(q, past[0]):
        kernel = functools.partial(gpu.step_attention, q, k, v, past, lengths)
    else:
        return otherwise()
    return jax.lax.platform_dependent(cuda=kernel, default=otherwise)


def paged_attention(
    q: Queries, k: NewKeys, v: NewKeys, past: paged.Pages, lengths: Lengths
) -> Queries:
    """`attention` to a past in pages: row b sees its first `lengths[b]` positions.

    A GPU takes our kernel for a decode step, where it has it.
    """
    form = paged.step_attention if q.shape[1] == 1 else paged.chunk_attention
    if not (cuts_evenly(q, QUERIES) and cuts_evenly(k, NEW_KEYS)):
        return form(q, k, v, past, lengths)
    # Each device by itself takes as many turns as its own rows need.
    pages = jax.tree.map(lambda pool: P(*POOL[: pool.ndim]), past)._replace(table=TABLE)
    specs = (QUERIES, NEW_KEYS, NEW_KEYS, pages, LENGTHS)
    otherwise = functools.partial(per_device(form, specs, QUERIES), q, k, v, past, lengths)
    if q.shape[1] == 1 and gpu.has_paged_step_kernel_for(q, past.k):
        kernel = per_device(gpu.paged_step_attention, specs, QUERIES)
        here = functools.partial(kernel, q, k, v, past, lengths)
        return jax.lax.platform_dependent(cuda=here, default=otherwise)
    return otherwise()


def causal_attention(q: Queries, k: NewKeys, v: NewKeys, first: causal.First = None) -> Queries:
    """Attention without a past: query t reads the keys from index `first[t]`, or from 0, up to t.

    Its gradient holds no [time, time] array. A GPU takes cuDNN's kernels where it has both
    directions and every row is one document.
    """
    otherwise = functools.partial(causal.causal_attention, q, k, v, first)
    if not (cuts_evenly(q, QUERIES) and cuts_evenly(k, NEW_KEYS)):
        return otherwise()
    if first is None and q.shape[1] > 1 and gpu.has_training_kernel(q.dtype, q.shape[-1]):
        kernel = functools.partial(gpu.prompt_attention, q, k, v)
        return jax.lax.platform_dependent(cuda=kernel, default=otherwise)
    return otherwise()


def max_and_argmax(
    logits: Float[Array, "batch vocab"],
) -> tuple[Float[Array, " batch"], Int[Array, " batch"]]:
    """Each row's largest logit and its id, of equals the first. No row may hold a NaN."""
    return by_platform("max_and_argmax", logits)


def argmax(logits: Float[Array, "batch vocab"]) -> Int[Array, " batch"]:
    """The id of each row's largest logit, of equals the first."""
    return max_and_argmax(logits)[1]


def top_k_keeps(
    logits: Float[Array, "batch vocab"], top_k: Int[Array, " batch"]
) -> Bool[Array, "batch vocab"]:
    """The `top_k` likeliest tokens, or all where it is 0; of equals the lower id comes first."""
    ones = jnp.ones_like(logits)
    return _leads(logits, ones, top_k.astype(logits.dtype) - 1) | (top_k == 0)[:, None]


def top_p_keeps(
    probs: Float[Array, "batch vocab"], top_p: Float[Array, " batch"]
) -> Bool[Array, "batch vocab"]:
    """Which tokens survive top-p, by Meta's rule (`ops.sampling.top_p_keeps`)."""
    # With top_p = 1 all stay, though a rounded sum may exceed 1.
    return _leads(probs, probs, top_p) | (top_p >= 1)[:, None]


@jax.jit  # traced and lowered once, for top-k and for top-p
def _leads(values: Array, weights: Array, limit: Array) -> Array:
    return by_platform("leads", values, weights, limit)
