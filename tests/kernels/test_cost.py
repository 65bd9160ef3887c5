"""What the compiled programs cost on a CPU: read from XLA, so no clock and no luck is in it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import Config
from llama_jax.generation import driver
from llama_jax.generation.batch import batch_settings
from llama_jax.generation.limits import CPU
from llama_jax.generation.loop import prefill
from llama_jax.generation.state import NewCache
from llama_jax.kernels import cpu
from llama_jax.kernels.forms import FORMS
from llama_jax.model.cache import KVCache
from llama_jax.model.transformer import forward, init_params
from llama_jax.ops.linear import dot

pytestmark = pytest.mark.bits

SLOTS = 4096


@pytest.fixture(scope="module")
def wide():
    """Two layers of a model whose matrices are each large beside all activations."""
    return Config.named("tiny").replace(
        dim=2048,
        n_layers=2,
        n_heads=8,
        n_kv_heads=8,
        head_dim=256,
        hidden_dim=2304,
        vocab_size=2048,
        max_seq_len=SLOTS,
    )


def shapes_of(config, dtype):
    return jax.eval_shape(functools.partial(init_params, dtype=dtype), jax.random.key(0), config)


def compiled_loop(config, dtype, batch):
    """With a cache in float32, as a CPU has it whatever the weights."""
    params = shapes_of(config, dtype)
    settings = jax.tree.map(np.asarray, batch_settings(config, [], batch))
    numbers, prompts = (jax.ShapeDtypeStruct((batch, *time), jnp.int32) for time in ((), (16,)))
    make = functools.partial(prefill, tokens_per_read=16)
    new = NewCache(KVCache, batch, SLOTS, jnp.float32)
    state = jax.eval_shape(make, params, new, prompts, numbers, np.int32(0), settings)
    until = jax.ShapeDtypeStruct((), jnp.int32)
    sizes = {"tokens_per_check": CPU.tokens_per_check}
    return driver.decode.lower(params, state, settings, numbers, until, **sizes).compile()


def least_copied(config, dtype):
    """The bytes of the smallest matrix of the model, and so of the least that a copy of one takes.

    Scores over all slots and a product's partial sums are less.
    """
    return config.dim * min(config.dim, config.vocab_size) * dtype.itemsize


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_token_copies_neither_the_cache_nor_a_weight(wide, dtype, batch, tied):
    wide, dtype = wide.replace(tie_embeddings=tied), jnp.dtype(dtype)
    memory = compiled_loop(wide, dtype, batch).memory_analysis()
    cache_bytes = 2 * wide.n_layers * batch * wide.dim * SLOTS * 4
    assert memory.alias_size_in_bytes >= cache_bytes, "the cache is written in place"
    assert least_copied(wide, dtype) <= cache_bytes // (2 * wide.n_layers)
    assert memory.temp_size_in_bytes < least_copied(wide, dtype)


def test_one_widened_matrix_is_caught(wide, monkeypatch):
    """`w2` in a plain product of one row, for which XLA writes it out in float32."""
    w2 = (wide.hidden_dim, wide.dim)

    def product(x, w):
        return dot(x, w, 0) if w.shape == w2 else cpu.product(x, w, over=0)

    monkeypatch.setitem(FORMS["linear"], "cpu", product)
    jax.clear_caches()
    wide, dtype = wide.replace(n_layers=1), jnp.dtype("bfloat16")
    memory = compiled_loop(wide, dtype, 1).memory_analysis()
    jax.clear_caches()
    assert memory.temp_size_in_bytes >= least_copied(wide, dtype)


def test_a_long_text_holds_nothing_of_time_by_time(config):
    """Not even a mask of one byte, for one head: attention goes block by block."""
    time = 16384
    tokens = jax.ShapeDtypeStruct((1, time), jnp.int32)

    def last_logits(params, tokens, positions):
        return forward(params, tokens, positions, at=jnp.full((1, 1), time - 1))[0]

    program = jax.jit(last_logits).lower(shapes_of(config, "float32"), tokens, tokens)
    assert program.compile().memory_analysis().temp_size_in_bytes < time * time // 2


def test_the_angles_of_a_prompt_are_computed_once_for_all_layers(params):
    """And not for every element of every head that they turn."""
    positions = jnp.arange(64)[None]
    text = jax.jit(forward).lower(params, positions, positions).compile().as_text()
    assert (text.count(" cosine("), text.count(" sine(")) == (1, 1)
