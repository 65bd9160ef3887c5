"""What the compiled programs cost on a CPU: read from XLA, so no clock and no luck is in it."""

import functools

import jax
import jax.numpy as jnp
import pytest

from llama_jax.cache import KVCache
from llama_jax.config import Config
from llama_jax.model import forward, init_params
from llama_jax.ops.linear import STRANDS

SLOTS = 4096
MIB = 2**20


@pytest.fixture(scope="module")
def wide():
    """Two layers of a model whose weights are large beside its activations."""
    return Config.named("tiny").replace(
        dim=768,
        n_layers=2,
        n_heads=12,
        n_kv_heads=12,
        head_dim=64,
        hidden_dim=2048,
        vocab_size=32000,
        max_seq_len=SLOTS,
    )


def shapes_of(config, dtype):
    return jax.eval_shape(functools.partial(init_params, dtype=dtype), jax.random.key(0), config)


def decode_loop(params, cache, last, start):
    """Greedy tokens until the cache is full: `decode.advance` without its settings."""

    def step(state):
        position, last, cache = state
        positions = jnp.full((len(last), 1), position)
        logits, cache = forward(params, last[:, None], positions, cache)
        return position + 1, jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32), cache

    return jax.lax.while_loop(lambda state: state[0] < SLOTS, step, (start, last, cache))


def compiled_loop(config, dtype, batch):
    """With a cache in float32, as a CPU has it whatever the weights."""
    shape = (batch, config.n_kv_heads, SLOTS, config.head_dim)
    each = (jax.ShapeDtypeStruct(shape, jnp.float32),) * config.n_layers
    last = jax.ShapeDtypeStruct((batch,), jnp.int32)
    start = jax.ShapeDtypeStruct((), jnp.int32)
    loop = jax.jit(decode_loop, donate_argnums=1)
    return loop.lower(shapes_of(config, dtype), KVCache(each, each), last, start).compile()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_copies_neither_the_cache_nor_a_weight(wide, dtype, batch, tied):
    wide = wide.replace(tie_embeddings=tied)
    compiled = compiled_loop(wide, jnp.dtype(dtype), batch)
    memory = compiled.memory_analysis()
    cache_bytes = 2 * wide.n_layers * batch * wide.dim * SLOTS * 4
    assert memory.alias_size_in_bytes >= cache_bytes, "the cache is written in place"
    # Scores over all slots and the output's partial sums, not a weight or a layer's cache: sixteen
    # of them, or one bfloat16 row's eighth of the matrix in float32.
    sums = wide.dim // STRANDS * wide.vocab_size * 4 if (dtype, batch) == ("bfloat16", 1) else 0
    assert memory.temp_size_in_bytes < sums + (3 if batch == 1 else 6) * MIB


def test_a_long_text_holds_nothing_of_time_by_time(config):
    """Not even a mask of one byte, for one head: attention goes block by block."""
    time = 16384
    tokens = jax.ShapeDtypeStruct((1, time), jnp.int32)

    def last_logits(params, tokens, positions):
        return forward(params, tokens, positions, at=jnp.full((1, 1), time - 1))[0]

    program = jax.jit(last_logits).lower(shapes_of(config, "float32"), tokens, tokens)
    assert program.compile().memory_analysis().temp_size_in_bytes < time * time // 2
