"""The cache in pages of 8-bit integers: what the contiguous one of 8 bits gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import config_of

from llama_jax.model.int8_cache import Int8KVCache
from llama_jax.model.int8_paged import Int8Paged
from llama_jax.model.paged import PAGE
from llama_jax.model.transformer import forward, init_params
from llama_jax.sharding.arrays import mesh_of, shard_params, sharding_of
from llama_jax.sharding.mesh import make_mesh

CONFIG = config_of(vocab_size=128)
PAGES, TABLE = 5, np.array([[3, 0], [4, 2]], np.int32)
LENGTHS = np.array([70, 9])
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 2 * PAGE))
jitted = jax.jit(forward)


@pytest.fixture(scope="module")
def params():
    return init_params(jax.random.key(0), CONFIG)


def chunks(length):
    return [np.arange(at, at + PAGE) for at in range(0, length, PAGE)]


def read_in_pages(params, cache):
    """The cache after each row was read by chunks, and each row's last logits."""
    found = []
    for row, length in enumerate(LENGTHS):
        for positions in chunks(length):
            cache = cache.with_table(TABLE[row : row + 1])
            tokens = np.where(positions < length, TOKENS[row, positions], 0)
            logits, cache = jitted(params, tokens[None], positions[None], cache)
        found.append(logits[0, (length - 1) % PAGE])
    return np.stack(found), cache


def empty():
    return Int8Paged.empty(CONFIG, pages=PAGES, rows=1, width=2, dtype=jnp.float32)


def step(params, cache):
    asked = TOKENS[np.arange(2), LENGTHS][:, None], LENGTHS[:, None]
    return jitted(params, *asked, cache)


@pytest.fixture(scope="module")
def filled(params):
    return read_in_pages(params, empty())


def test_its_logits_are_those_of_the_contiguous_cache(params, filled):
    found, cache = filled
    other = Int8KVCache.empty(CONFIG, batch=2, slots=2 * PAGE, dtype=jnp.float32)
    wanted, other = jitted(params, TOKENS, np.tile(np.arange(2 * PAGE), (2, 1)), other)
    np.testing.assert_allclose(found, wanted[np.arange(2), LENGTHS - 1], atol=2e-5)
    logits, after = step(params, cache.with_table(TABLE))
    np.testing.assert_allclose(logits, step(params, other)[0], atol=2e-5)
    places = sorted([[TABLE[0, 1], 70 - PAGE], [TABLE[1, 0], 9]])
    for one, other in zip(jax.tree.leaves(cache), jax.tree.leaves(after), strict=True):
        if one.ndim > 2:
            axes = (1, 3)[: one.ndim - 2]
            changed = np.argwhere(np.any(np.asarray(one != other), axis=axes))
            assert changed.tolist() == places


def test_what_is_left_in_pages_changes_no_bit(params, filled):
    _, cache = filled
    held = np.zeros((PAGES, PAGE), bool)
    for row, length in enumerate(LENGTHS):
        held[TABLE[row, np.arange(length) // PAGE], np.arange(length) % PAGE] = True
    clean, spoilt = (
        jax.tree.map(
            lambda x, left=left: jnp.where(held[:, None], x, left) if x.ndim == 3 else x, cache
        ).with_table(TABLE)
        for left in (0.0, jnp.nan)
    )
    np.testing.assert_array_equal(step(params, clean)[0], step(params, spoilt)[0])


def test_scales_that_are_no_numbers_are_found_and_cleared(filled):
    _, cache = filled
    spoilt = dataclasses.replace(
        cache, v_scale=(*cache.v_scale[:-1], cache.v_scale[-1].at[4, 1, 3].set(jnp.nan))
    )
    assert bool(spoilt.is_finite(jnp.array([0, 2, 3, PAGES])))
    assert not bool(spoilt.is_finite(jnp.array([2, 4])))
    cleared = spoilt.cleared(jnp.array([4, PAGES]))
    for one, before in zip(jax.tree.leaves(cleared), jax.tree.leaves(cache), strict=True):
        if one.ndim > 2:
            np.testing.assert_array_equal(one, before.at[4].set(0))
    np.testing.assert_array_equal(cleared.table, cache.table)


def test_its_bytes_are_those_of_its_pools():
    cache = empty()
    held = sum(x.nbytes for x in jax.tree.leaves(cache)) - cache.table.nbytes
    assert held == Int8Paged.pool_bytes(CONFIG, pages=PAGES, dtype=jnp.float32)


@pytest.mark.slow
def test_a_mesh_gives_one_devices_logits(params, filled):
    cut = shard_params(params, make_mesh(tensor=4))
    put = lambda x, spec: jax.device_put(x, sharding_of(mesh_of(cut), spec))  # noqa: E731
    with jax.set_mesh(mesh_of(cut)):
        cache = jax.tree.map(put, empty(), empty().specs())
        found, cache = read_in_pages(cut, cache)
        logits, _ = step(cut, cache.with_table(TABLE))
    np.testing.assert_allclose(found, filled[0], atol=2e-5)
    np.testing.assert_allclose(logits, step(params, filled[1].with_table(TABLE))[0], atol=2e-5)
