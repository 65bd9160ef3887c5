"""The cache in pages: a contiguous cache's logits, and no bit of a row from anywhere else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives
from helpers import config_of

from llama_jax.model.cache import KVCache
from llama_jax.model.paged import PAGE, Paged
from llama_jax.model.transformer import forward, init_params
from llama_jax.sharding.arrays import mesh_of, shard_params, sharding_of
from llama_jax.sharding.mesh import make_mesh

PAGES, ROWS, WIDTH, CHUNK = 14, 4, 3, 64
LENGTHS = [130, 5, 64, 70]
CONFIG = config_of(vocab_size=128)
jitted = jax.jit(forward)


@pytest.fixture(scope="module", params=[2, 4], ids="kv_heads{}".format)
def params(request):
    return init_params(jax.random.key(0), CONFIG.replace(n_kv_heads=request.param))


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    whole = rng.integers(0, CONFIG.vocab_size, (ROWS, WIDTH * PAGE))
    whole[3, :PAGE] = whole[0, :PAGE]  # two rows begin alike
    return whole


def in_any_order(seed=0):
    """A table of pages of their own for each row, in random order."""
    order = np.random.default_rng(seed).permutation(PAGES)[: ROWS * WIDTH]
    return order.reshape(ROWS, WIDTH).astype(np.int32)


def empty(params):
    return Paged.empty(params.config, pages=PAGES, rows=1, width=WIDTH, dtype=jnp.float32)


def read(params, cache, table, tokens, start=0):
    """Reads one text from a position on, a chunk at a time; the last token's logits."""
    for at in range(start, len(tokens), CHUNK):
        part = np.zeros((1, CHUNK), int)
        inside = tokens[at : at + CHUNK]
        part[0, : len(inside)] = inside
        positions = np.arange(at, at + CHUNK)[None]
        logits, cache = jitted(params, part, positions, cache.with_table(table[None]))
    return logits[0, len(inside) - 1], cache


def filled(params, texts, table):
    """A cache that has read the first LENGTHS of the texts, and each row's logits."""
    cache, found = empty(params), []
    for row, length in enumerate(LENGTHS):
        logits, cache = read(params, cache, table[row], texts[row, :length])
        found.append(logits)
    return np.stack(found), cache


def step(params, cache, table, tokens, positions):
    cache = cache.with_table(table)
    logits, cache = jitted(params, tokens[:, None], np.asarray(positions)[:, None], cache)
    return logits[:, 0], cache


def test_chunks_and_steps_give_the_logits_of_a_contiguous_cache(params, texts):
    """Rows of other lengths, whose pages lie in any order; the last step begins a page."""
    positions = np.tile(np.arange(WIDTH * PAGE), (ROWS, 1))
    wanted, _ = jitted(params, texts, positions)
    other = KVCache.empty(params.config, batch=ROWS, slots=WIDTH * PAGE, dtype=jnp.float32)
    _, other = jitted(params, texts, positions, other)  # each step begins within this past
    table, rows = in_any_order(), np.arange(ROWS)
    found, cache = filled(params, texts, table)
    last = np.array(LENGTHS) - 1
    np.testing.assert_allclose(found, wanted[rows, last], atol=1e-5)
    for _ in range(3):
        last += 1
        tokens = texts[rows, last]
        expected, other = jitted(params, tokens[:, None], last[:, None], other)
        logits, cache = step(params, cache, table, tokens, last)
        np.testing.assert_allclose(logits, expected[:, 0], atol=1e-5)
        np.testing.assert_array_equal(np.argmax(logits, -1), np.argmax(expected[:, 0], -1))


def test_rows_that_begin_alike_share_a_page(params, texts):
    """The second reads its own part alone, from where the shared page ends."""
    table = in_any_order()
    (first, _, _, alone), cache = filled(params, texts, table)
    shared = table.copy()
    shared[3, 0] = table[0, 0]
    spoilt = jax.tree.map(lambda pool: pool.at[table[3, 0]].set(jnp.nan), (cache.k, cache.v))
    cache = Paged(*spoilt, cache.table)
    logits, cache = read(params, cache, shared[3], texts[3, : LENGTHS[3]], start=PAGE)
    np.testing.assert_array_equal(logits, alone)
    again, _ = read(params, cache, table[0], texts[0, : LENGTHS[0]], start=2 * PAGE)
    np.testing.assert_array_equal(again, first)


def test_no_bit_of_a_row_is_anybody_elses(params, texts):
    """Alone, with other neighbours, in another row, and with its pages elsewhere."""
    table, rows = in_any_order(), np.arange(ROWS)
    _, cache = filled(params, texts, table)
    tokens, positions = texts[rows, LENGTHS], np.array(LENGTHS)
    together, _ = step(params, cache, table, tokens, positions)

    for row in rows:
        alone = np.full_like(table, PAGES)
        alone[row] = table[row]
        logits, _ = step(params, cache, alone, tokens, np.where(rows == row, positions, 0))
        np.testing.assert_array_equal(logits[row], together[row])

    turned = [2, 3, 1, 0]
    logits, _ = step(params, cache, table[turned], tokens[turned], positions[turned])
    np.testing.assert_array_equal(logits, together[jnp.array(turned)])

    short = np.array([1, 5, 64, 2])  # rows 0 and 3 have fewer pages, so others' turns move
    logits, _ = step(params, cache, table, tokens, short)
    np.testing.assert_array_equal(logits[1:3], together[1:3])

    order = np.random.default_rng(1).permutation(PAGES)
    pools = jax.tree.map(lambda pool: pool[np.argsort(order)], (cache.k, cache.v))
    moved = order[table].astype(np.int32)
    logits, _ = step(params, Paged(*pools, cache.table), moved, tokens, positions)
    np.testing.assert_array_equal(logits, together)
    chunk, _ = read(params, Paged(*pools, cache.table), moved[0], texts[0, :130], start=64)
    same, _ = read(params, cache, table[0], texts[0, :130], start=64)
    np.testing.assert_array_equal(chunk, same)


def test_a_step_writes_its_own_places_and_nothing_else(params, texts):
    """Not for a row without pages, nor beyond the table's width."""
    table = in_any_order()
    _, cache = filled(params, texts, table)
    table[1] = PAGES
    positions = np.array([130, 5, WIDTH * PAGE, 70])
    _, after = step(params, cache, table, texts[:, 0], positions)
    written = np.zeros((PAGES, PAGE), bool)
    for row in (0, 3):
        written[table[row, positions[row] // PAGE], positions[row] % PAGE] = True
    for one, other in zip((*cache.k, *cache.v), (*after.k, *after.v), strict=True):
        changed = np.any(np.asarray(one != other), axis=(1, 3))
        np.testing.assert_array_equal(changed, written)
    assert after.fits(jnp.array(positions)).tolist() == [True, False, False, True]
    assert (after.slots, after.pages) == (WIDTH * PAGE, PAGES)


def test_its_bytes_are_those_of_its_pools(params):
    cache = empty(params)
    held = sum(x.nbytes for x in jax.tree.leaves((cache.k, cache.v)))
    assert held == Paged.pool_bytes(params.config, pages=PAGES, dtype=jnp.float32)


# What is compiled

MANY = 4096


def compiled_loop(time, run=forward):
    """Steps of a program that carries a donated cache of many pages, and a pool's bytes."""
    config = CONFIG.replace(n_kv_heads=2)
    params = jax.eval_shape(functools.partial(init_params, config=config), jax.random.key(0))
    make = functools.partial(
        Paged.empty, config, pages=MANY, rows=2, width=WIDTH, dtype=jnp.float32
    )
    numbers = jax.ShapeDtypeStruct((2, time), jnp.int32)

    def steps(params, cache, tokens, positions, end):
        def one(state):
            cache, positions = state
            return run(params, tokens, positions, cache)[1], positions + time

        return jax.lax.while_loop(lambda state: state[1][0, 0] < end, one, (cache, positions))

    cache = jax.eval_shape(make)
    lowered = jax.jit(steps, donate_argnums=1).lower(params, cache, numbers, numbers, 0)
    return lowered.compile().memory_analysis(), Paged.pool_bytes(
        config, pages=MANY, dtype=jnp.float32
    ) // (2 * config.n_layers)


@pytest.mark.parametrize("time", [1, CHUNK])
def test_a_step_copies_no_pool(time):
    memory, pool = compiled_loop(time)
    assert memory.alias_size_in_bytes >= 4 * pool, "all pools are written in place"
    assert memory.temp_size_in_bytes < pool


def test_a_step_that_reads_what_it_wrote_is_caught():
    """The old pool, after the new one is written."""

    def looks_back(params, tokens, positions, cache):
        logits, after = forward(params, tokens, positions, cache)
        again = after.k[0][positions[0, 0] % 7, 0, 0, 0] + cache.k[0][tokens[0, 0], 0, 0, 0]
        return logits, dataclasses.replace(after, v=(after.v[0] + again, *after.v[1:]))

    memory, pool = compiled_loop(1, looks_back)
    assert memory.temp_size_in_bytes >= pool


# On a mesh


@pytest.mark.parametrize("tensor", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_mesh_gives_one_devices_logits_and_two_all_reduces_a_layer(texts, tensor):
    """With tensor=4 two devices share a key head."""
    params = init_params(jax.random.key(0), CONFIG.replace(n_kv_heads=2))
    table, rows = in_any_order(), np.arange(ROWS)
    found, cache = filled(params, texts, table)
    wanted, _ = step(params, cache, table, texts[rows, LENGTHS], LENGTHS)

    cut = shard_params(params, make_mesh(tensor=tensor))
    mesh = mesh_of(cut)
    put = lambda x, spec: jax.device_put(x, sharding_of(mesh, spec))  # noqa: E731
    on_mesh = empty(params)
    on_mesh = jax.tree.map(put, on_mesh, on_mesh.specs())
    with jax.set_mesh(mesh):
        for row, length in enumerate(LENGTHS):
            logits, on_mesh = read(cut, on_mesh, table[row], texts[row, :length])
            np.testing.assert_allclose(logits, found[row], atol=1e-5)
        asked = texts[rows, LENGTHS][:, None], np.array(LENGTHS)[:, None]
        program = jitted.lower(cut, *asked, on_mesh.with_table(jnp.asarray(table))).compile()
        logits, on_mesh = step(cut, on_mesh, table, texts[rows, LENGTHS], LENGTHS)
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    assert {pool.sharding.shard_shape(pool.shape)[1] for pool in on_mesh.k} == {1}
    said = [c.kind for c in collectives(program.as_text(), mesh)]
    assert said == ["all-reduce"] * (2 * CONFIG.n_layers + 1), "and one for the embedding"
