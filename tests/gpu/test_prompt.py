"""What XLA makes of reading a long prompt, for an H100: nothing of its length squared."""

import jax
import jax.numpy as jnp
import pytest
from compiled_text import program
from contracts import arrays_of, copies_of_caches, cudnn_calls
from programs import (
    LLAMA_8B,
    cache_of,
    compiled_prefill,
    compiled_step,
    mesh_of,
    nbytes,
    params_of,
    shallow,
)

from llama_jax import kernels
from llama_jax.generation.limits import ACCELERATOR
from llama_jax.model import cache as cache_room

LAYERS, TIME = 2, 65_536
A_HEAD = TIME * TIME
"""The scores of one head: more numbers than any weight has, or any activation."""


A_TOKEN = 3.5 * LLAMA_8B.hidden_dim * 2
"""The most bytes that a prompt's token may take: a layer's activations, where they are widest."""
TWICE = 2.2
"""What twice the tokens may take: scores of them all take four times as much."""


def prompt_step(devices, layers=LAYERS, time=TIME, **sizes):
    config, mesh = shallow(LLAMA_8B, layers), mesh_of(devices, **sizes)
    cache = cache_of(config, mesh, batch=1, slots=time, fresh=True)
    return compiled_step(params_of(config, mesh), cache, mesh, time=time)


def too_much(devices, **given):
    """Where a prompt holds more than its activations, or more than twice that of half of it."""
    whole, half = (
        prompt_step(devices, time=time, **given).memory_analysis().temp_size_in_bytes
        for time in (TIME, TIME // 2)
    )
    print(f"temporaries: {whole / 1e9:.2f} GB, of half the tokens {half / 1e9:.2f} GB")
    faults = [f"{whole / TIME:,.0f} bytes a token"] if whole > TIME * A_TOKEN else []
    return faults + ([f"{whole / half:.1f} times half's"] if whole > TWICE * half else [])


@pytest.mark.usefixtures("h100s")  # alone it would pass where no contract can be checked
def test_a_heads_scores_are_larger_than_what_a_prompt_needs():
    assert LLAMA_8B.vocab_size * LLAMA_8B.dim < A_HEAD
    assert TIME * 2 * LLAMA_8B.hidden_dim < A_HEAD


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("tensor", [1, 8])
def test_with_cudnn_a_fresh_prompt_holds_no_heads_scores(h100s, tensor):
    compiled = prompt_step(h100s, tensor=tensor)
    text = program(compiled.as_text())
    assert cudnn_calls(text) == LAYERS
    assert arrays_of(text, A_HEAD) == []


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("tensor", [1, 8])
def test_with_cudnn_a_prompt_holds_its_activations(h100s, tensor):
    assert too_much(h100s, tensor=tensor) == []


@pytest.mark.usefixtures("cudnn")
def test_generate_reads_a_whole_prompt_by_cudnn(h100s):
    # A small vocabulary, so that one head's scores would be the largest array.
    config, time = shallow(LLAMA_8B, LAYERS).replace(vocab_size=1024), ACCELERATOR.prefill_tokens
    compiled = compiled_prefill(config, mesh_of(h100s), batch=1, time=time)
    text = program(compiled.as_text())
    assert cudnn_calls(text) == LAYERS
    assert arrays_of(text, time * time) == []


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize(
    ("rows", "sizes"), [(1, {}), (8, {}), (1, {"tensor": 2}), (8, {"data": 4, "tensor": 2})]
)
@pytest.mark.parametrize("time", [512, 2048])
def test_a_fresh_prompt_copies_no_cache(h100s, rows, sizes, time):
    config, mesh = shallow(LLAMA_8B, 1), mesh_of(h100s, **sizes)
    cache = cache_of(config, mesh, batch=rows, slots=2 * time, fresh=True)
    compiled = compiled_step(params_of(config, mesh), cache, mesh, time=time)
    (one, *_) = cache.k
    text = program(compiled.as_text())
    assert copies_of_caches(text, one.sharding.shard_shape(one.shape)) == []
    held = nbytes(cache, of_a_device=True)
    assert compiled.memory_analysis().alias_size_in_bytes == held


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize(("rows", "time"), [(1, ACCELERATOR.prefill_tokens), (4, 4096)])
def test_generate_copies_no_cache_of_a_fresh_prompt(h100s, rows, time):
    config = shallow(LLAMA_8B, 1)
    compiled = compiled_prefill(config, mesh_of(h100s), batch=rows, time=time)
    cache = rows, config.n_kv_heads, 2 * time, config.head_dim
    assert copies_of_caches(program(compiled.as_text()), cache) == []


@pytest.mark.usefixtures("cudnn")
def test_a_cache_that_a_fresh_prompt_copies_is_caught(h100s):
    """One that is not donated."""
    config, mesh = shallow(LLAMA_8B, 1), mesh_of(h100s)
    cache = cache_of(config, mesh, batch=1, slots=4096, fresh=True)
    compiled = compiled_step(params_of(config, mesh), cache, mesh, time=2048, donate=())
    assert len(copies_of_caches(program(compiled.as_text()), cache.k[0].shape)) == 2


@pytest.mark.usefixtures("cudnn")
def test_a_cache_that_a_fresh_prompt_turns_around_is_caught(h100s, replace):
    """Its last slot first, to be written, and then as it was."""
    write = cache_room.write_slots

    def turned(slots, new, positions):
        return jnp.flip(write(jnp.flip(slots, 2), new, positions), 2)

    replace("llama_jax.model.cache.write_slots", turned)
    config, mesh = shallow(LLAMA_8B, 1), mesh_of(h100s)
    cache = cache_of(config, mesh, batch=1, slots=4096, fresh=True)
    text = program(compiled_step(params_of(config, mesh), cache, mesh, time=2048).as_text())
    assert len(copies_of_caches(text, cache.k[0].shape)) >= 2


def test_nor_does_xlas_own_attention(h100s, replace):
    replace("llama_jax.kernels.gpu.has_prompt_kernel", lambda *_: False)
    text = program(prompt_step(h100s).as_text())
    assert cudnn_calls(text) == 0
    assert arrays_of(text, A_HEAD) == []
    assert too_much(h100s) == []


def in_one_block(q, spans):
    """Plain attention with the queries of a group as rows: [kv_heads, group * time, time]."""
    batch, time, _, head_dim = q.shape
    k, v = spans[0].k, spans[0].v
    rows = q.reshape(batch, time, k.shape[1], -1, head_dim).transpose(0, 2, 3, 1, 4)
    rows = rows.reshape(batch, k.shape[1], -1, head_dim)
    scores = jnp.einsum("bkrd,bksd->bkrs", rows, k, preferred_element_type=jnp.float32)
    later = jnp.arange(time) > jnp.arange(rows.shape[2])[:, None] % time
    weights = jax.nn.softmax(jnp.where(later, -jnp.inf, scores), axis=-1).astype(v.dtype)
    out = jnp.einsum("bkrs,bksd->bkrd", weights, v).reshape(batch, k.shape[1], -1, time, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def a_head_at_a_time(q, spans):
    """Plain attention over each head in turn, whose scores one loop holds."""
    group = q.shape[2] // spans[0].k.shape[1]
    heads = (q[0].swapaxes(0, 1), *(jnp.repeat(x[0], group, axis=0) for x in spans[0][:2]))

    def of_head(head):
        q, k, v = (x[None, :, None] for x in head)
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)[0, :, 0]

    return jax.lax.map(of_head, heads).swapaxes(0, 1)[None]


@pytest.mark.parametrize("attention", [in_one_block, a_head_at_a_time])
def test_attention_that_holds_scores_is_caught(h100s, replace, attention):
    replace("llama_jax.kernels.gpu.has_prompt_kernel", lambda *_: False)
    replace("llama_jax.kernels.blockwise.over_spans", attention)
    compiled = prompt_step(h100s, layers=1)
    assert arrays_of(program(compiled.as_text()), A_HEAD) != []
    assert len(too_much(h100s, layers=1)) == 2


def test_blocks_of_scores_that_are_larger_than_activations_are_caught(h100s, replace):
    replace("llama_jax.kernels.gpu.has_prompt_kernel", lambda *_: False)
    replace("llama_jax.kernels.blockwise.QUERY_BLOCK", TIME // 8)
    replace("llama_jax.kernels.blockwise.KEY_BLOCK", TIME // 8)
    assert too_much(h100s, layers=1) != []


def test_our_own_attention_in_one_block_is_caught(h100s, replace):
    replace("llama_jax.kernels.gpu.has_prompt_kernel", lambda *_: False)
    for block in ("QUERY_BLOCK", "KEY_BLOCK", "CAUSAL_BLOCK"):
        replace(f"llama_jax.kernels.blockwise.{block}", 1 << 20)
    assert arrays_of(program(prompt_step(h100s, layers=1).as_text()), A_HEAD) != []


@pytest.mark.usefixtures("cudnn")
def test_a_second_call_of_cudnn_is_caught(h100s, replace):
    once = kernels.gpu.prompt_kernel
    replace("llama_jax.kernels.gpu.prompt_kernel", lambda q, k, v: once(once(q, k, v), k, v))
    assert cudnn_calls(program(prompt_step(h100s).as_text())) == 2 * LAYERS
