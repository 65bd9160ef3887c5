"""The LLaMA transformer: Flax modules that name the weights, and pure functions that do the work.

The only file that imports Flax. `forward` serves training, prefill, decoding and serving alike.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex64, Float, Float32, Int, PRNGKeyArray

from llama_jax.config import Config, DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling
from llama_jax.model.cache import Cache, Past, Positions, Uncached
from llama_jax.ops import rope
from llama_jax.ops.embedding import rows_at
from llama_jax.ops.linear import linear, linear_transposed
from llama_jax.ops.norm import rms_norm
from llama_jax.ops.swiglu import swiglu
from llama_jax.sharding.arrays import ACTIVATION, LOGITS, constrain, gathered, kept_cut, on_mesh_of
from llama_jax.weights.params import Params

Hidden = Float[Array, "batch time dim"]
Rotations = Complex64[Array, "batch time half_head_dim"]
Tokens = Int[Array, "batch time"]
Logits = Float32[Array, "batch wanted vocab"]


def forward(
    params: Params,
    tokens: Tokens,
    positions: Positions,
    cache: Cache | None = None,
    *,
    at: Int[Array, "batch wanted"] | None = None,
) -> tuple[Logits, Any]:
    """The logits that follow each token, and the cache with the tokens' keys and values in it.

    Logits are [batch, time, vocab], in float32 whatever the weights. The cache is of the kind
    given, or None.

    Positions count from 0 and ascend by one along time. They alone decide the rotation, the slot
    and the causal mask, so padding on the right needs no mask of its own. `at` picks the time
    indices whose logits are wanted, in place of all: a prompt's last, say.

    Pure and not jitted: wrap it in `jax.jit`, and donate the cache.
    """
    if not tokens.size:
        raise ValueError(f"tokens of shape {list(tokens.shape)}: pass at least one, in each row")
    model, past = Transformer(params.config), Uncached() if cache is None else cache
    with on_mesh_of(params):
        weights = kept_cut(params.weights, positions)
        logits, after = model.apply({"params": weights}, tokens, positions, past, at)
    return logits, None if cache is None else after


def init_params(key: PRNGKeyArray, config: Config, dtype: Any = jnp.float32) -> Params:
    """Random weights to train from: normal with deviation 0.02, less on the way to the residual.

    `jax.eval_shape(init_params, key, config)` gives the shapes of a model of any size and allocates
    nothing.
    """
    token = jnp.zeros((1, 1), jnp.int32)
    variables = Transformer(config, jnp.dtype(dtype)).init(key, token, token, Uncached(), None)
    return Params(variables["params"], config)


class Transformer(nn.Module):
    """Embedding, `n_layers` blocks, norm, output: [batch, time] tokens to logits in float32."""

    config: Config
    init_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        positions: Positions,
        cache: Cache,
        at: Int[Array, "batch wanted"] | None,
    ) -> tuple[Logits, Cache]:
        c = self.config
        embedding = Embedding(c, self.init_dtype, name="tok_embeddings")()
        x = constrain(rows_at(embedding, tokens), ACTIVATION)
        turns = rope.rotations(positions, rope_frequencies(c))
        if isinstance(c.rope_scaling, YarnScaling):
            turns = turns * c.rope_scaling.attention_factor
        steps = []
        for layer in range(c.n_layers):
            x, step = _layer(self, f"layers_{layer}", x, turns, positions, cache.layer(layer))
            steps.append(step)
        cache = cache.commit(steps, positions, after=x)
        if at is not None:
            x = jnp.take_along_axis(x, at[:, :, None], axis=1)
        x = RMSNorm(c, self.init_dtype, name="norm")(x)
        if c.tie_embeddings:
            logits = linear_transposed(x, embedding)
        else:
            logits = linear(x, Output(c, self.init_dtype, name="output")())
        logits = logits[..., : c.vocab_size]  # the weight may be padded
        return constrain(logits.astype(jnp.float32), LOGITS), cache


class Block(nn.Module):
    """One layer: attention, then feed-forward, each after a norm and onto the residual."""

    config: Config
    init_dtype: Any

    @nn.compact
    def __call__(
        self, x: Hidden, turns: Rotations, positions: Positions, past: Past
    ) -> tuple[Hidden, Any]:
        c, dtype = self.config, self.init_dtype
        h = RMSNorm(c, dtype, name="attention_norm")(x)
        h, step = Attention(c, dtype, name="attention")(h, turns, positions, past)
        x = constrain(x + h, ACTIVATION)
        h = RMSNorm(c, dtype, name="ffn_norm")(x)
        x = constrain(x + FeedForward(c, dtype, name="feed_forward")(h), ACTIVATION)
        return x, step


class Attention(nn.Module):
    """Grouped-query attention. The past reads and remembers: its kind is its own affair."""

    config: Config
    init_dtype: Any

    @nn.compact
    def __call__(
        self, x: Hidden, turns: Rotations, positions: Positions, past: Past
    ) -> tuple[Hidden, Any]:
        c, dtype = self.config, self.init_dtype
        query_dim, kv_dim = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        wq = _weight(self, "wq", INWARD, (c.dim, query_dim), dtype)
        wk = _weight(self, "wk", INWARD, (c.dim, kv_dim), dtype)
        wv = _weight(self, "wv", INWARD, (c.dim, kv_dim), dtype)
        wo = _weight(self, "wo", _outward(c), (query_dim, c.dim), dtype)

        plus = functools.partial(_plus_bias, self, c.attention_bias)
        heads = (*x.shape[:2], -1, c.head_dim)
        q = rope.rotate(plus("bq", linear(x, wq)).reshape(heads), turns)
        k = rope.rotate(plus("bk", linear(x, wk)).reshape(heads), turns)
        v = plus("bv", linear(x, wv)).reshape(heads)
        out, step = past.attend(q, k, v, positions)
        return plus("bo", linear(out.reshape(*x.shape[:2], -1), wo)), step


class FeedForward(nn.Module):
    """`w2(swiglu(w1(x), w3(x)))`."""

    config: Config
    init_dtype: Any

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        c, dtype = self.config, self.init_dtype
        w1 = _weight(self, "w1", INWARD, (c.dim, c.hidden_dim), dtype)
        w3 = _weight(self, "w3", INWARD, (c.dim, c.hidden_dim), dtype)
        w2 = _weight(self, "w2", _outward(c), (c.hidden_dim, c.dim), dtype)
        plus = functools.partial(_plus_bias, self, c.mlp_bias)
        h = swiglu(plus("b1", linear(x, w1)), plus("b3", linear(x, w3)))
        return plus("b2", linear(h, w2))


class RMSNorm(nn.Module):
    """Names the scale of one `rms_norm`."""

    config: Config
    init_dtype: Any

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        scale = _weight(self, "scale", nn.initializers.ones, (self.config.dim,), self.init_dtype)
        return rms_norm(x, scale, self.config.norm_eps)


class Embedding(nn.Module):
    """Names the embedding, [vocab, dim], which a tied model uses at both ends."""

    config: Config
    init_dtype: Any

    @nn.compact
    def __call__(self) -> Float[Array, "vocab dim"]:
        shape = (self.config.vocab_size, self.config.dim)
        return _weight(self, "weight", INWARD, shape, self.init_dtype)


class Output(nn.Module):
    """Names the output weight, [dim, vocab]."""

    config: Config
    init_dtype: Any

    @nn.compact
    def __call__(self) -> Any:
        shape = (self.config.dim, self.config.vocab_size)
        return _weight(self, "weight", INWARD, shape, self.init_dtype)


def _layer(module: Transformer, name: str, *inputs: Any) -> tuple[Hidden, Any]:
    """The block called `name`, with the weights that are there, or in `init_params` random ones."""
    if module.has_variable("params", name):
        return _shared_block(module.config, module.get_variable("params", name), *inputs)
    return Block(module.config, module.init_dtype, name=name)(*inputs)


@functools.partial(jax.jit, static_argnums=0)  # traced and lowered once, not once a layer
def _shared_block(config: Config, weights: Any, *inputs: Any) -> tuple[Hidden, Any]:
    return Block(config, None).apply({"params": weights}, *inputs)  # type: ignore[return-value]


def _weight(module: Any, name: str, init: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """The weight called `name`, as its product takes it, or in `init_params` a random one.

    `param` alone would trace the initialiser of a weight that is there, to compare shapes: a third
    of the time that a program takes to trace.
    """
    if module.has_variable("params", name):
        return gathered(module.get_variable("params", name), module.name, name)
    return module.param(name, init, shape, dtype)


INWARD = nn.initializers.normal(0.02)


def _outward(c: Config) -> Any:
    """For the two weights per layer that add to the residual, whose variance sums over depth."""
    return nn.initializers.normal(0.02 / (2 * c.n_layers) ** 0.5)


def _plus_bias(module: Any, has_bias: bool, name: str, x: Array) -> Array:
    """`x` plus the bias called `name`, in a model that has it."""
    if not has_bias:
        return x
    bias = _weight(module, name, nn.initializers.zeros, x.shape[-1:], module.init_dtype)
    return x + bias.astype(x.dtype)


@functools.cache
def rope_frequencies(c: Config) -> rope.Frequencies:
    """The frequencies of a config's RoPE, scaled as its kind of scaling says."""
    frequencies = rope.frequencies(c.head_dim, c.rope_theta)
    match c.rope_scaling:
        case None | DynamicScaling():  # the latter scales nothing as far as a config reaches
            return frequencies
        case LinearScaling(factor):
            return rope.scale_linear(frequencies, factor)
        case Llama3Scaling() as s:
            return rope.scale_llama3(
                frequencies,
                factor=s.factor,
                low_freq_factor=s.low_freq_factor,
                high_freq_factor=s.high_freq_factor,
                original_max_seq_len=s.original_max_seq_len,
            )
        case YarnScaling() as s:
            return rope.scale_yarn(
                frequencies,
                theta=c.rope_theta,
                factor=s.factor,
                beta_fast=s.beta_fast,
                beta_slow=s.beta_slow,
                truncate=s.truncate,
                original_max_seq_len=s.original_max_seq_len,
            )
