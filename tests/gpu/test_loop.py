"""What XLA makes of the loop that decodes, for an H100: nothing is copied, the host runs ahead."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_text import program
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from programs import LLAMA_8B, cache_of, compiled_step, laid_out, mesh_of, params_of, shallow

from llama_jax.batches import request_of
from llama_jax.decode import advance, prefill

CONFIG, BATCH, SLOTS, CHUNK = shallow(LLAMA_8B, 2), 8, 4096, 8
SMALLEST = LLAMA_8B.dim * LLAMA_8B.n_kv_heads * LLAMA_8B.head_dim * 2


def compiled_loop(mesh):
    whole = lambda tree: jax.tree.map(lambda x: laid_out(x, NamedSharding(mesh, P())), tree)  # noqa: E731
    params = params_of(CONFIG, mesh)
    request = whole(jax.tree.map(np.asarray, request_of(CONFIG, [], BATCH)))
    numbers = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    prompts = jax.ShapeDtypeStruct((BATCH, 16), jnp.int32)
    make = functools.partial(prefill, slots=SLOTS, dtype=jnp.bfloat16)
    with jax.set_mesh(mesh):
        state = whole(jax.eval_shape(make, params, prompts, numbers, request))
        cache = cache_of(CONFIG, mesh, batch=BATCH, slots=SLOTS)
        state = dataclasses.replace(state, cache=cache)
        taken, until = whole(numbers), whole(jax.ShapeDtypeStruct((), jnp.int32))
        jitted = jax.jit(advance, static_argnames="chunk", donate_argnames="state")
        return jitted.lower(params, state, request, taken, until, chunk=CHUNK).compile()


@pytest.fixture(scope="module")
def loop(h100s):
    return compiled_loop(mesh_of(h100s))


@pytest.fixture(scope="module")
def chunks(loop):
    """Eight tokens of each loop: of the one for likeliest tokens, and of the one for all else."""
    text = program(loop.as_text())
    outer = [i for i in text.executed[text.entry] if i.op == "while"]
    bodies = [text.computations[i.body] for i in outer]
    inner = [i for body in bodies for i in body if i.op == "while" and i.trips == CHUNK]
    assert len(inner) == len(outer) == 2
    return [text.inside(i.body) for i in inner]


def test_the_cache_stays_in_place_inside_the_loop(loop):
    text = program(loop.as_text())
    assert text.large_outputs(SMALLEST) == []
    cache = BATCH * SLOTS * LLAMA_8B.n_kv_heads * LLAMA_8B.head_dim * 2
    memory = loop.memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * CONFIG.n_layers * cache
    assert memory.temp_size_in_bytes < cache


def test_the_host_waits_for_nothing_inside_a_chunk(chunks):
    assert [chunk.host_waits() for chunk in chunks] == [[], []]


def test_the_likeliest_token_costs_few_kernels(chunks, h100s):
    """Beyond the model's own: the choice, the stops, and the state of a row."""
    mesh = mesh_of(h100s)
    cache = cache_of(CONFIG, mesh, batch=BATCH, slots=SLOTS)
    model = program(compiled_step(params_of(CONFIG, mesh), cache, mesh, time=1).as_text())
    likeliest = min(chunks, key=lambda chunk: len(chunk.kernels))
    print(
        *(len(part.kernels) for part in (model, *chunks)), "kernels: a step; a token of each loop"
    )
    assert len(likeliest.kernels) <= len(model.kernels) + 20
