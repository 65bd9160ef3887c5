"""The GPU's decode kernel, interpreted on CPU, against the einsum that stands in for it."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from llama_jax.kernels import decode_attention as module
from llama_jax.kernels.decode_attention import BLOCK, decode_attention
from llama_jax.model.int8_cache import decoded, rounded
from llama_jax.ops.attention import attention

pytestmark = pytest.mark.bits


def case(*, batch=2, heads=4, kv_heads=2, head_dim=64, slots=128, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 5)
    own, past = (batch, 1, kv_heads, head_dim), (batch, kv_heads, slots, head_dim)
    shapes = (batch, 1, heads, head_dim), own, own, past, past
    draws = (jax.random.normal(key, s, dtype) for key, s in zip(keys, shapes, strict=True))
    q, k, v, past_k, past_v = draws
    return q, k, v, (past_k, past_v)


def difference(tensors, lengths):
    lengths = jnp.array(lengths)
    ours = decode_attention(*tensors, lengths, interpret=True)
    theirs = attention(*tensors, lengths)
    assert ours.dtype == theirs.dtype
    return np.max(np.abs(np.asarray(ours - theirs, np.float32)))


def test_the_kernel_is_attention_at_the_edges_of_a_block():
    lengths = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK]
    assert difference(case(batch=len(lengths)), lengths) < 1e-6


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (32, 1)])
def test_the_kernel_is_attention_for_every_grouping(heads, kv_heads):
    assert difference(case(heads=heads, kv_heads=kv_heads), [100, 3]) < 1e-6


def test_the_kernel_is_attention_for_large_heads_each_with_its_own_keys():
    assert difference(case(head_dim=128, heads=2), [100, 3]) < 1e-6


@pytest.mark.parametrize("slots", [BLOCK, 200])
def test_slots_need_not_be_whole_blocks(slots):
    assert difference(case(slots=slots), [slots, slots - 1]) < 1e-6


def test_more_blocks_than_splits_are_dealt_out(monkeypatch):
    monkeypatch.setattr("llama_jax.kernels.decode_attention.PROGRAMS", 8)  # 2 a head, of 8 blocks
    assert difference(case(slots=8 * BLOCK), [7 * BLOCK - 1, 3]) < 1e-6


def test_bfloat16_differs_by_its_own_rounding():
    assert difference(case(dtype=jnp.bfloat16), [100, 3]) < 0.02


def in_pages(past, spare=2, left=jnp.nan):
    """The rows' slots as pages in random order, the table, and spare pages with `left` in them."""
    batch, kv_heads, slots, _ = past[0].shape
    width = slots // BLOCK
    order = np.random.default_rng(0).permutation(batch * width + spare)[: batch * width]

    def pool(x):
        own = x.shape[3:]
        pages = x.reshape(batch, kv_heads, width, BLOCK, *own).swapaxes(1, 2)
        unused = left if jnp.issubdtype(x.dtype, jnp.floating) else 99
        empty = jnp.full((batch * width + spare, kv_heads, BLOCK, *own), unused, x.dtype)
        return empty.at[order].set(pages.reshape(-1, *pages.shape[2:]))

    return tuple(map(pool, past)), jnp.asarray(order.reshape(batch, width))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (2, 2)])
def test_pages_in_any_order_give_what_their_slots_give_side_by_side(heads, kv_heads):
    """To the bit, with another's NaN after a row's end and a table that names used pages alone."""
    lengths = jnp.array([0, 1, BLOCK, 3 * BLOCK - 1])
    q, k, v, past = case(batch=4, heads=heads, kv_heads=kv_heads, slots=3 * BLOCK)
    pools, table = in_pages(past)
    for row, length in enumerate(lengths):
        page, place = table[row, length // BLOCK], length % BLOCK
        pools = tuple(pool.at[page, :, place:].set(jnp.nan) for pool in pools)
    unused = jnp.arange(3) * BLOCK >= lengths[:, None]
    table = jnp.where(unused, len(pools[0]), table)
    wanted = decode_attention(q, k, v, past, lengths, interpret=True)
    found = decode_attention(q, k, v, pools, lengths, table=table, interpret=True)
    np.testing.assert_array_equal(found, wanted)


def test_keys_of_8_bits_are_attention_to_what_they_stand_for():
    lengths = jnp.array([0, 1, BLOCK + 1, 3 * BLOCK - 1])
    q, k, v, past = case(batch=4, slots=3 * BLOCK)
    (keys, key_scale), (values, value_scale) = (rounded(x) for x in past)
    stored = keys, values, key_scale, value_scale
    found = decode_attention(q, k, v, stored, lengths, interpret=True)
    meant = decoded(keys, key_scale, q.dtype), decoded(values, value_scale, q.dtype)
    np.testing.assert_allclose(found, attention(q, k, v, meant, lengths), atol=2e-6)

    pools, table = in_pages(stored)
    page, place = table[2, 1], 1  # what a former owner left after the row's end
    pools = (*pools[:2], *(pool.at[page, :, place:].set(jnp.nan) for pool in pools[2:]))
    again = decode_attention(q, k, v, pools, lengths, table=table, interpret=True)
    np.testing.assert_array_equal(again, found)


def test_a_row_without_pages_reads_its_own_key_alone():
    q, k, v, past = case(heads=2)
    pools, table = in_pages(past)
    table = table.at[1].set(len(pools[0]))
    found = decode_attention(q, k, v, pools, jnp.array([9, 2 * BLOCK]), table=table, interpret=True)
    np.testing.assert_allclose(found[1], v[1], atol=1e-6)


def test_pages_of_another_size_are_refused():
    q, k, v, past = case(slots=32)
    with pytest.raises(ValueError, match=f"pages of {BLOCK} slots, not 32"):
        decode_attention(q, k, v, past, jnp.array([1, 2]), table=jnp.zeros((2, 2), jnp.int32))


def test_slots_beyond_a_rows_length_are_not_read():
    q, k, v, (past_k, past_v) = case()
    spoilt = tuple(x.at[:, :, BLOCK:].set(jnp.nan) for x in (past_k, past_v))
    ours = decode_attention(q, k, v, spoilt, jnp.array([BLOCK, 3]), interpret=True)
    assert not np.any(np.isnan(ours))


def test_fewer_slots_than_a_block_are_refused():
    with pytest.raises(ValueError, match=f"at least {BLOCK} slots .*, not 32 and 64"):
        decode_attention(*case(slots=32), jnp.array([1, 2]), interpret=True)


def blocks_read(monkeypatch, tensors, lengths):
    """How often the kernel reads each block: by row, key head and first slot."""
    seen, at, kernel = collections.Counter(), [], module.kernel_of_split

    def watched(*refs, **sizes):
        at[:] = pl.program_id(0), pl.program_id(1)
        kernel(*refs, **sizes)

    def ds(start, size):
        jax.debug.callback(lambda *block: seen.update([tuple(map(int, block))]), *at, start)
        return pl.ds(start, size)

    counting = types.SimpleNamespace(**{**vars(pl), "ds": ds})
    monkeypatch.setattr(module, "pl", counting)
    monkeypatch.setattr(module, "kernel_of_split", watched)
    decode_attention(*tensors, jnp.array(lengths), interpret=True).block_until_ready()
    jax.effects_barrier()
    return seen


def once_each(lengths, kv_heads):
    """Each block of used slots of each row and key head, by one index for keys and values."""
    return {
        (row, head, block * BLOCK): 1
        for row, length in enumerate(lengths)
        for head in range(kv_heads)
        for block in range(-(-length // BLOCK))
    }


@pytest.mark.parametrize("programs", [8, 264])
def test_each_used_block_is_read_once_by_all_splits_together(monkeypatch, programs):
    monkeypatch.setattr(module, "PROGRAMS", programs)
    lengths = [0, 1, 3 * BLOCK + 1, 8 * BLOCK]
    tensors = case(batch=4, slots=8 * BLOCK)
    assert blocks_read(monkeypatch, tensors, lengths) == once_each(lengths, kv_heads=2)


def test_a_kernel_of_which_every_split_reads_all_is_caught(monkeypatch):
    kernel = module.kernel_of_split

    def alone(*refs, splits, **sizes):
        kernel(*refs, splits=1, **sizes)

    monkeypatch.setattr(module, "kernel_of_split", alone)
    assert blocks_read(monkeypatch, case(), [100, 3]) != once_each([100, 3], kv_heads=2)
