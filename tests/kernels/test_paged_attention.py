"""Attention to pages against the einsum over the same pages side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels import paged
from llama_jax.kernels.paged import Pages
from llama_jax.ops.attention import attention

pytestmark = pytest.mark.bits

PAGE, WIDTH = 8, 20


def case(rows, *, time=1, heads=4, kv_heads=2, head_dim=8, seed=0):
    """Queries and own keys of `rows` rows, and a past of random pages in random order."""
    keys = jax.random.split(jax.random.key(seed), 5)
    own, pool = (rows, time, kv_heads, head_dim), (rows * WIDTH + 3, kv_heads, PAGE, head_dim)
    shapes = (rows, time, heads, head_dim), own, own, pool, pool
    q, k, v, pool_k, pool_v = (jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True))
    order = np.random.default_rng(seed).permutation(len(pool_k))[: rows * WIDTH]
    return (q, k, v), Pages(pool_k, pool_v, jnp.asarray(order.reshape(rows, WIDTH), jnp.int32))


def of_used(past, lengths):
    """The past with a table that names the used pages alone, as a server's does."""
    unused = np.arange(WIDTH) * PAGE >= np.asarray(lengths)[:, None]
    return past._replace(table=jnp.where(unused, len(past.k), past.table))


def expected(own, past, lengths):
    def slots(pool):
        rows = pool[past.table].swapaxes(1, 2)  # [rows, kv_heads, width, page, head_dim]
        return rows.reshape(*rows.shape[:2], -1, rows.shape[-1])

    return attention(*own, (slots(past.k), slots(past.v)), jnp.array(lengths))


SHAPES = [(4, 2, 8), (3, 3, 8), (8, 1, 16), (3, 3, 32)]
"""Query heads, key heads and head_dim. The last has a form of its own in a step."""


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), SHAPES)
def test_a_step_is_attention_at_the_edges_of_pages_and_turns(heads, kv_heads, head_dim):
    lengths = [0, 1, PAGE - 1, PAGE, PAGE + 1, 15 * PAGE, 16 * PAGE, 16 * PAGE + 1, WIDTH * PAGE]
    own, past = case(len(lengths), heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    wanted = expected(own, past, lengths)
    found = jax.jit(paged.step_attention)(*own, of_used(past, lengths), jnp.array(lengths))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("lengths", [[0], [1], [8 * PAGE], [8 * PAGE + 1], [0, 3, WIDTH * PAGE]])
def test_a_chunk_is_attention_at_the_edges_of_blocks(lengths):
    own, past = case(len(lengths), time=5)
    wanted = expected(own, past, lengths)
    found = jax.jit(paged.chunk_attention)(*own, of_used(past, lengths), jnp.array(lengths))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), SHAPES)
def test_a_row_of_a_step_is_the_same_to_the_bit_in_any_company(heads, kv_heads, head_dim):
    lengths = np.array([1, 5 * PAGE + 3, 0, WIDTH * PAGE, 9])
    own, past = case(5, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    step = jax.jit(paged.step_attention)
    one = step(*own, of_used(past, lengths), jnp.array(lengths))
    for row in range(5):
        alone = np.where(np.arange(5) == row, lengths, 0)
        found = step(*own, of_used(past, alone), jnp.array(alone))
        np.testing.assert_array_equal(found[row], one[row])
    turned = [4, 2, 0, 1, 3]
    q, k, v = (x[np.array(turned)] for x in own)
    past = past._replace(table=of_used(past, lengths).table[np.array(turned)])
    found = step(q, k, v, past, jnp.array(lengths[turned]))
    np.testing.assert_array_equal(found, one[np.array(turned)])


@pytest.mark.parametrize("form", [paged.step_attention, paged.chunk_attention])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), SHAPES)
def test_what_is_left_in_pages_changes_no_bit(form, heads, kv_heads, head_dim):
    """Numbers beyond a row's end, in its last page and in pages that no row has."""
    lengths = [PAGE + 1, 0, 3 * PAGE]
    own, past = case(3, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    past = of_used(past, lengths)
    written = np.zeros((len(past.k), 1, PAGE, 1), bool)
    for row, length in enumerate(lengths):
        for p in range(length):
            written[past.table[row, p // PAGE], 0, p % PAGE] = True
    read = jax.jit(form)
    one = read(*own, past, jnp.array(lengths))
    for left in (7.0, -1e30, jnp.nan):
        k, v = (jnp.where(written, pool, left) for pool in (past.k, past.v))
        np.testing.assert_array_equal(read(*own, Pages(k, v, past.table), jnp.array(lengths)), one)


@pytest.mark.parametrize("form", [paged.step_attention, paged.chunk_attention])
def test_a_row_without_pages_reads_its_own_key_alone(form):
    (q, k, v), past = case(2, heads=2)
    nothing = past._replace(table=past.table.at[1].set(len(past.k)))
    found = form(q, k, v, nothing, jnp.array([9, 9]))
    np.testing.assert_allclose(found[1], v[1], atol=1e-6)
