"""Cross-entropy of the next token, without an array of shape [batch, time, vocab].

    loss = sum over tokens of weight * (logsumexp(logits) - logits[target])

A few tokens at a time meet the whole vocabulary. The loss is a sum, so the forward pass can compute
the gradients too, from each chunk's logits: three products a chunk, not four, and no logits kept.

    x [8, 2048, 4096] and a vocabulary of 128,256: chunks of x [8, 64, 4096], logits [8, 64, 128256]
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int

from llama_jax.kernels import on_platform, tokens_in_cache
from llama_jax.ops.linear import dot, product_precision
from llama_jax.sharding.arrays import axis_parts, constrain
from llama_jax.weights.table import BATCH, TENSOR

CHUNK_LOGITS = 2**26
"""Logits that a device holds at once: 523 tokens' of a vocabulary of 128,256; 256 MB."""

Hidden = Float[Array, "batch time dim"]
Targets = Int[Array, "batch time"]
TokenWeights = Float32[Array, "batch time"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def cross_entropy(
    vocab_size: int,
    over: int,
    z_loss: float,
    x: Hidden,
    w: Float[Array, "rows columns"],
    targets: Targets,
    weights: TokenWeights,
) -> Float32[Array, ""]:
    """The sum of the tokens' losses, each times its weight, in float32.

    `w` is the output weight, [dim, vocab] where `over` is 0 and [vocab, dim] where it is 1. It is
    multiplied in the dtype of `x`, and its gradient is summed in float32. A vocabulary padded for
    a mesh counts up to `vocab_size`. `z_loss` times the square of the logsumexp is added to each
    token's loss (arXiv:2204.02311, section 5).
    """
    product = _product(vocab_size, over, _narrow(over, x, w))

    def add(total: Array, chunk: Any) -> tuple[Array, None]:
        x, targets, weights = chunk
        return total + _of_logits(product(x), targets, weights, z_loss)[0], None

    def of(*chunks: Array) -> Array:
        return jax.lax.scan(add, jnp.zeros((), jnp.float32), chunks)[0]

    return _in_chunks(of, w.shape[1 - over], x, targets, weights)


def _forward(
    vocab_size: int, over: int, z_loss: float, x: Hidden, w: Array, targets: Array, weights: Array
) -> tuple[Array, Any]:
    """The loss, and as residuals the gradients of `x` and `w`."""
    narrow = _narrow(over, x, w)
    product = _product(vocab_size, over, narrow)

    def add(sums: tuple[Array, Array], chunk: Any) -> tuple[tuple[Array, Array], Array]:
        (total, d_w), (x, targets, weights) = sums, chunk
        loss, d_logits = _of_logits(product(x), targets, weights, z_loss)
        d_logits = d_logits.astype(x.dtype)
        d_x = dot(d_logits, narrow, 1 - over, preferred_element_type=jnp.float32)
        return (total + loss, d_w + _outer(over, x, d_logits)), d_x.astype(x.dtype)

    def of(*chunks: Array) -> Any:
        # Devices with different rows keep sums of their own, which are added once, after the loop.
        d_w = jnp.zeros((chunks[0].shape[1], *w.shape), jnp.float32)
        d_w = constrain(d_w, P(BATCH, *_vocab_spec(over)))
        (total, d_w), d_x = jax.lax.scan(add, (jnp.zeros((), jnp.float32), d_w), chunks)
        # [chunks, parts, batch, time, dim] -> [batch, time, dim]
        d_x = jnp.moveaxis(d_x, 0, 2).reshape(x.shape[0], -1, x.shape[2])[:, : x.shape[1]]
        return total, (d_x, jnp.sum(d_w, axis=0).astype(w.dtype))

    return _in_chunks(of, w.shape[1 - over], x, targets, weights)


def _backward(
    vocab_size: int, over: int, z_loss: float, gradients: Any, scale: Array
) -> tuple[Array, Array, None, None]:
    d_x, d_w = gradients
    return (d_x * scale).astype(d_x.dtype), d_w * scale.astype(d_w.dtype), None, None


cross_entropy.defvjp(_forward, _backward)


def tile_tokens(time: int, rows: int, vocab: int, platform: str) -> int:
    """Tokens whose logits a device holds at once, of its `rows` and its part of the vocabulary."""
    most = min(CHUNK_LOGITS // vocab, tokens_in_cache(platform, vocab) or CHUNK_LOGITS)
    return rows * min(time, max(1, most // rows))


def _narrow(over: int, x: Hidden, w: Array) -> Array:
    """`w` in the dtype of `x`, whole over fsdp and cut over tensor.

    It is narrowed where it lies, because otherwise XLA gathers it in float32: twice the bytes.
    """
    whole = _vocab_spec(over)
    cut = P(*("fsdp" if axis is None else axis for axis in whole))
    return constrain(constrain(w.astype(x.dtype), cut), P(*whole))


def _product(vocab_size: int, over: int, w: Array) -> Any:
    """A function from a chunk of tokens to its logits, in float32."""
    padding = jnp.arange(w.shape[1 - over]) >= vocab_size

    def logits_of(x: Array) -> Array:
        logits = dot(x, w, over, preferred_element_type=jnp.float32)
        logits = jnp.where(padding, -jnp.inf, logits) if len(padding) > vocab_size else logits
        return constrain(logits, P(BATCH, None, None, TENSOR))

    return logits_of


def _of_logits(logits: Array, targets: Array, weights: Array, z_loss: float) -> tuple[Array, Array]:
    """The loss of a chunk, and its gradient by the logits."""
    logsumexp = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    # By mask and sum, because a gather from a vocabulary that is cut would collect all of it.
    hit = jnp.arange(logits.shape[-1]) == targets[..., None]
    at_target = jnp.sum(jnp.where(hit, logits, 0), axis=-1)
    log_z = logsumexp[..., 0]
    loss = jnp.sum(weights * (log_z - at_target + z_loss * log_z**2))
    probs = jnp.exp(logits - logsumexp)
    d_logits = probs * (1 + 2 * z_loss * logsumexp) - hit
    return loss, d_logits * weights[..., None]


def _outer(over: int, x: Array, d_logits: Array) -> Array:
    """The gradient of the output weight, [parts, *w.shape], from [parts, batch, time, ...]."""
    parts, tokens = x.shape[0], x.shape[1] * x.shape[2]
    one, other = (x, d_logits) if over == 0 else (d_logits, x)
    one, other = (each.reshape(parts, tokens, each.shape[-1]) for each in (one, other))
    outer = functools.partial(
        jax.lax.dot_general,
        dimension_numbers=(((0,), (0,)), ((), ())),
        precision=product_precision(x.dtype),
        preferred_element_type=jnp.float32,
    )
    if parts == 1:  # XLA copies the operands of a product by parts on a CPU, element by element
        return outer(one[0], other[0])[None]
    return jax.vmap(outer)(one, other)


def _in_chunks(of: Any, vocab: int, *arrays: Array) -> Any:
    """`of` each array's chunks, as large as they are to be where the program will run."""
    return on_platform(lambda platform, *arrays: of(*_chunks(platform, vocab, *arrays)), *arrays)


def _chunks(
    platform: str, vocab: int, x: Array, targets: Array, weights: Array
) -> tuple[Array, ...]:
    """Each array as [chunks, parts, batch, time, ...]: `parts` are devices with rows of their own.

    Cut along time, so that rows stay on their devices. Padding has the weight 0.
    """
    parts = axis_parts(BATCH)
    batch, time = targets.shape
    rows = batch // parts
    size = tile_tokens(time, rows, vocab // axis_parts(TENSOR), platform) // rows

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, -time % size)] + [(0, 0)] * (x.ndim - 2))
        by_chunk = padded.reshape(parts, rows, -1, size, *x.shape[2:])
        return constrain(jnp.moveaxis(by_chunk, 2, 0), P(None, BATCH))

    return cut(x), cut(targets), cut(weights)


def _vocab_spec(over: int) -> tuple[Any, Any]:
    return (None, TENSOR) if over == 0 else (TENSOR, None)
