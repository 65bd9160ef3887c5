"""What XLA makes of a later chunk of a long prompt, for an H100: the past is read once."""

import jax
import pytest
from compiled_text import program
from contracts import copies_of_caches, kernels_beyond
from programs import LLAMA_8B, cache_of, compiled_step, mesh_of, nbytes, params_of, shallow

LAYERS, TIME, SLOTS = 2, 512, 4096
KERNELS_A_LAYER = 72 if jax.__version_info__ >= (0, 12) else 71
"""Of one row, with those that a layer runs for each block of its past. It may fall. From JAX
0.12 on, XLA copies the sums of the softmax, 64 KB, once a block. It begins them with three less."""
CACHE = 1, LLAMA_8B.n_kv_heads, SLOTS, LLAMA_8B.head_dim
PAST = f"bf16[1,{LLAMA_8B.n_kv_heads},{SLOTS},{LLAMA_8B.head_dim}]"
ALL_SCORES = LLAMA_8B.n_heads * TIME * SLOTS * 4
"""The bytes of a layer's scores of every query and slot, in float32."""


def chunk_of(devices, layers=LAYERS, time=TIME):
    config, mesh = shallow(LLAMA_8B, layers), mesh_of(devices)
    cache = cache_of(config, mesh, batch=1, slots=SLOTS)
    return compiled_step(params_of(config, mesh), cache, mesh, time=time), nbytes(cache)


@pytest.fixture(scope="module")
def chunk(h100s):
    """512 tokens over 4,096 slots in two layers, and their caches' bytes."""
    return chunk_of(h100s)


def test_a_chunk_reads_its_past_once(chunk):
    assert program(chunk[0].as_text()).times_read(PAST) == 1


def test_a_wider_chunk_reads_its_past_once_for_512_queries(h100s):
    """As `generate` has them: 2,048 tokens of each of 8 rows, 16,384 of one."""
    text = program(chunk_of(h100s, time=4 * TIME)[0].as_text())
    assert text.times_read(PAST) == 4
    assert copies_of_caches(text, CACHE) == []


def test_a_chunk_holds_the_scores_of_a_part_of_its_past(chunk):
    temporary = chunk[0].memory_analysis().temp_size_in_bytes
    print(f"8B, {LAYERS} layers, {TIME} tokens over {SLOTS} slots: {temporary / 1e6:.1f} MB")
    assert temporary < ALL_SCORES


def test_a_chunk_updates_the_cache_in_place_and_waits_for_no_host(chunk):
    compiled, cache_bytes = chunk
    assert compiled.memory_analysis().alias_size_in_bytes == cache_bytes
    assert program(compiled.as_text()).host_waits() == []


def test_the_kernels_of_a_chunks_layer(h100s, chunk):
    more, fewer = (program(c[0].as_text()) for c in (chunk_of(h100s, LAYERS + 1), chunk))
    print(f"{more.launches - fewer.launches} kernels a layer, of {TIME} tokens")
    assert kernels_beyond(more, fewer, 1, KERNELS_A_LAYER) == []


def test_a_past_that_each_block_of_queries_reads_is_caught(h100s, replace):
    replace("llama_jax.kernels.blockwise.QUERY_BLOCK", TIME // 4)
    assert program(chunk_of(h100s)[0].as_text()).times_read(PAST) == 4


def test_a_past_taken_whole_is_caught(h100s, replace):
    replace("llama_jax.kernels.blockwise.KEY_BLOCK", 2 * SLOTS)
    compiled, _ = chunk_of(h100s)
    assert compiled.memory_analysis().temp_size_in_bytes > ALL_SCORES
