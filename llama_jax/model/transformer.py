"""The LLaMA transformer: pure functions of a config and its weights, to be read top to bottom.

    tokens [batch, time] -> embed -> x [batch, time, dim]
    each layer              x = x + attention(rms_norm(x))
                            x = x + feed_forward(rms_norm(x))
    logits [batch, time, vocab] = output(x), which is a norm and a product

`forward` serves training, prefill and decoding alike. Weights meet activations only through
`linear`, `gated` and `embed`, and the cache computes attention and stores keys and values. So the
model never asks whether a weight is quantized, a cache paged, or an array sharded. Of a layer's
feed-forward weights it asks whether their three products have one form.

The same model as a Flax module, `Transformer`, is `model/module.py`: a file of its own, because a
class of Flax's cannot be stated before Flax is imported, and `forward` need not wait for that.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex64, Float, Float32, Int, PRNGKeyArray

from llama_jax.config import Config
from llama_jax.jax_settings import AS_TRACED, as_written
from llama_jax.kernels import embed, gated, has_gated_form, linear, linear_transposed, rotations
from llama_jax.model.cache import ModelCache, Past, Positions, Uncached
from llama_jax.model.inputs import check_inputs, checked_positions
from llama_jax.ops import rope
from llama_jax.ops.norm import rms_norm
from llama_jax.ops.swiglu import swiglu
from llama_jax.sharding.arrays import constrain, gather_every_step, gather_weights, use_mesh_of
from llama_jax.sharding.specs import ACTIVATION, LOGITS
from llama_jax.validation import wrong_kind
from llama_jax.weights.params import Params, Weights, nested
from llama_jax.weights.table import layer_specs, model_specs, weight_keys, weight_table

Hidden = Float[Array, "batch time dim"]
Rotations = Complex64[Array, "batch time half_head_dim"]
Tokens = Int[Array, "batch time"]
"""Token ids, a row a text."""
Logits = Float32[Array, "batch wanted vocab"]
"""For each wanted token, a number for every token that may follow it."""


def forward(
    params: Params,
    tokens: Tokens,
    positions: Positions | None = None,
    cache: ModelCache | None = None,
    *,
    at: Int[Array, "batch wanted"] | None = None,
) -> tuple[Logits, Any]:
    """The next token's logits at each position, and the cache with the new keys and values in it.

    Logits are a float32 array [batch, time, vocab]. With bfloat16 weights they are rounded to
    bfloat16 first, as in Meta's code. The cache is of the kind given, or None.

    Positions count from 0 and ascend by one along time. They alone decide the rotation, the slot
    and the causal mask, so padding on the right needs no mask. `at` [batch, wanted] picks the time
    indices whose logits are returned: a prompt's last, say.

    Pure and not jitted: wrap it in `jax.jit`, and donate the cache. ValueError where an argument is
    no array of such a shape, there are no positions, or the cache has too few slots.
    """
    check_inputs(params, tokens, cache, at)
    positions = checked_positions(positions, tokens)
    past: ModelCache = Uncached() if cache is None else cache
    with use_mesh_of(params.weights):
        weights = gather_every_step(params.weights, positions)
        logits, after = transformer(params.config, weights, tokens, positions, past, at)
    return logits, None if cache is None else after


def init_params(key: PRNGKeyArray, config: Config, dtype: Any = jnp.float32) -> Params:
    """Random weights to train from: normal, with the deviations of `weights/table.py`.

    `jax.eval_shape(init_params, key, config)` gives the shapes of a model of any size and allocates
    nothing.
    """
    if not isinstance(config, Config):
        raise wrong_kind("config", config, "pass a Config, such as Config.named('tiny')")
    if not isinstance(key, jax.Array):
        raise wrong_kind("key", key, "pass jax.random.key(0)")
    table = weight_table(config)
    weights = {
        path: table[path].init(k, table[path].shape, dtype)
        for path, k in weight_keys(key, config).items()
    }
    return Params(nested(weights), config)


@jax.named_scope("transformer")  # the name in profiles
@as_written(AS_TRACED)
def transformer(
    c: Config,
    w: Weights,
    tokens: Tokens,
    positions: Positions,
    cache: ModelCache,
    at: Int[Array, "batch wanted"] | None = None,
) -> tuple[Logits, Any]:
    """Embedding, `n_layers` blocks, the cache's new keys and values, output."""
    w = w | gather_weights(w, model_specs(c))
    x = constrain(embed(w["tok_embeddings"]["weight"], tokens), ACTIVATION)
    rotation, steps = rotations_of(c, positions), []
    for i in range(c.n_layers):
        x, step = block(c, w[f"layers_{i}"], x, rotation, positions, cache.layer(i))
        steps.append(step)
    cache = cache.commit(steps, positions, after=x)
    if at is not None:
        x = jnp.take_along_axis(x, at[:, :, None], axis=1)
    return output(c, w, x), cache


@functools.partial(jax.jit, static_argnums=0)  # traced and lowered once, not once a layer
def block(
    c: Config, w: Weights, x: Hidden, rotation: Rotations, positions: Positions, past: Past
) -> tuple[Hidden, Any]:
    """One layer: attention, then feed-forward, each after a norm and added to the residual."""
    w = gather_weights(w, layer_specs(c))
    h = rms_norm(x, w["attention_norm"]["scale"], c.norm_eps)
    h, step = attention(c, w["attention"], h, rotation, positions, past)
    x = constrain(x + h, ACTIVATION)
    h = rms_norm(x, w["ffn_norm"]["scale"], c.norm_eps)
    return constrain(x + feed_forward(w["feed_forward"], h), ACTIVATION), step


@jax.named_scope("attention")
def attention(
    c: Config, w: Weights, x: Hidden, rotation: Rotations, positions: Positions, past: Past
) -> tuple[Hidden, Any]:
    """Grouped-query attention over the past and the step's own tokens.

    Queries become [batch, time, n_heads, head_dim], keys and values [batch, time, n_kv_heads,
    head_dim]. `past` attends, and `step` holds the new keys and values for `commit`.
    """
    heads = (*x.shape[:2], -1, c.head_dim)
    q = rope.rotate(_plus(linear(x, w["wq"]), w, "bq").reshape(heads), rotation)
    k = rope.rotate(_plus(linear(x, w["wk"]), w, "bk").reshape(heads), rotation)
    v = _plus(linear(x, w["wv"]), w, "bv").reshape(heads)
    out, step = past.attend(q, k, v, positions)
    return _plus(linear(out.reshape(*x.shape[:2], -1), w["wo"]), w, "bo"), step


@jax.named_scope("feed_forward")
def feed_forward(w: Weights, x: Hidden) -> Hidden:
    """`w2(swiglu(w1(x), w3(x)))`, through a width of `hidden_dim`."""
    if has_gated_form(w):  # the same three products at once
        return gated(x, w["w1"], w["w3"], w["w2"])
    h = swiglu(_plus(linear(x, w["w1"]), w, "b1"), _plus(linear(x, w["w3"]), w, "b3"))
    return _plus(linear(h, w["w2"]), w, "b2")


def output(c: Config, w: Weights, x: Hidden) -> Logits:
    """The logits of a residual stream: the last norm, then the output weight, or the embedding."""
    h = rms_norm(x, w["norm"]["scale"], c.norm_eps)
    if c.tie_embeddings:
        logits = linear_transposed(h, w["tok_embeddings"]["weight"])
    else:
        logits = linear(h, w["output"]["weight"])
    logits = logits[..., : c.vocab_size]  # on a mesh the vocabulary may be padded
    return constrain(logits.astype(jnp.float32), LOGITS, otherwise=ACTIVATION)


def rotations_of(c: Config, positions: Positions) -> Rotations:
    """How each pair of a head rotates at each position; YaRN makes queries and keys longer too."""
    rotation = rotations(positions, rope_frequencies(c))
    factor = c.rope_scaling.attention_factor if c.rope_scaling else 1.0
    return rotation if factor == 1.0 else rotation * factor


@functools.cache
def rope_frequencies(c: Config) -> rope.Frequencies:
    """The frequencies of a config's RoPE, scaled as its kind of scaling says."""
    frequencies = rope.frequencies(c.head_dim, c.rope_theta)
    return c.rope_scaling.scaled(frequencies, c.rope_theta) if c.rope_scaling else frequencies


def _plus(x: Array, w: Weights, bias: str) -> Array:
    """Adds a bias, if the model has it."""
    return x + w[bias].astype(x.dtype) if bias in w else x
