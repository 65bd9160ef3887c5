"""The cache of 8-bit integers: nearly the whole cache's logits, in steps of any length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llama_jax
from llama_jax import Int8KVCache, KVCache
from llama_jax.model.memory import memory

TIME = 24
jitted = jax.jit(llama_jax.forward)


def logits_of(params, cache, cuts):
    """The logits of one text, read in steps that end at these positions."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, params.config.vocab_size, (2, TIME)))
    found, start = [], 0
    for end in cuts:
        positions = jnp.tile(jnp.arange(start, end), (2, 1))
        logits, cache = jitted(params, tokens[:, start:end], positions, cache)
        found.append(logits)
        start = end
    return np.concatenate(found, axis=1)


def empty(kind, params):
    return kind.empty(params.config, batch=2, slots=32, dtype=jnp.float32)


def test_its_logits_are_nearly_those_of_the_whole_cache(params):
    whole = logits_of(params, empty(KVCache, params), [TIME])
    found = logits_of(params, empty(Int8KVCache, params), [TIME])
    assert 0 < np.abs(found - whole).max() < 0.01 * np.abs(whole).max()


def test_a_text_is_the_same_however_it_is_cut_into_steps(params):
    once = logits_of(params, empty(Int8KVCache, params), [TIME])
    cut = logits_of(params, empty(Int8KVCache, params), [16, *range(17, TIME + 1)])
    np.testing.assert_allclose(cut, once, atol=2e-5)


def test_blocks_of_keys_give_what_all_keys_at_once_give(params, monkeypatch):
    once = logits_of(params, empty(Int8KVCache, params), [12, TIME])
    monkeypatch.setattr("llama_jax.kernels.blockwise.QUERY_BLOCK", 4)
    monkeypatch.setattr("llama_jax.kernels.blockwise.KEY_BLOCK", 5)
    jax.clear_caches()
    found = logits_of(params, empty(Int8KVCache, params), [12, TIME])
    jax.clear_caches()
    np.testing.assert_allclose(found, once, atol=2e-5)


def test_generate_stream_and_meshes_write_one_text_with_it(params):
    asked = {"max_new_tokens": 12, "temperature": [0.0, 1.0], "seed": 3, "cache": Int8KVCache}
    prompts = [[1, 2, 3], [7, 8, 9, 10, 11]]
    whole = [done.tokens for done in llama_jax.generate(params, prompts, **asked)]
    alone = llama_jax.generate(params, prompts[:1], **asked | {"temperature": 0.0})
    assert alone[0].tokens == whole[0]
    sharded = llama_jax.shard_params(params, llama_jax.make_mesh(data=2, tensor=2))
    assert [done.tokens for done in llama_jax.generate(sharded, prompts, **asked)] == whole


def test_it_grows_and_counts_its_bytes(params):
    cache = empty(Int8KVCache, params)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) == Int8KVCache.bytes(
        params.config, batch=2, slots=32, dtype=jnp.float32
    )
    grown = cache.grown(64)
    assert (grown.slots, grown.fresh) == (64, True)
    assert {leaf.shape[2] for leaf in jax.tree.leaves(grown)} == {64}
    found = memory(params.config, dtype="bfloat16", batch=2, context=32, cache=Int8KVCache)
    assert found.cache == Int8KVCache.bytes(params.config, batch=2, slots=32, dtype=None)


@pytest.mark.parametrize("value", [0.0, 1e-20, 3e4])
def test_keys_of_any_size_are_kept(value):
    from llama_jax.model.int8_cache import decoded, rounded

    x = jnp.full((1, 1, 2, 4), value, jnp.float32)
    np.testing.assert_allclose(decoded(*rounded(x), jnp.float32), x, rtol=1e-6)
