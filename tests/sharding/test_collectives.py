"""What each axis of a mesh costs, read from compiled programs."""

import dataclasses
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives

from llama_jax.config import Config
from llama_jax.generation.batch import batches_of, rows_of
from llama_jax.generation.limits import MAX_LOGPROBS
from llama_jax.generation.loop import decode, prefill
from llama_jax.generation.placement import Placement
from llama_jax.generation.settings import SamplingSettings
from llama_jax.generation.state import NewCache
from llama_jax.model.cache import KVCache
from llama_jax.model.memory import memory
from llama_jax.model.transformer import forward, init_params
from llama_jax.sharding.arrays import (
    mesh_of,
    shard_params,
    sharding_of,
    weight_shardings,
)
from llama_jax.sharding.mesh import make_mesh
from llama_jax.sharding.specs import CACHE, NEXT_LOGITS
from llama_jax.weights.table import REPLICATED

CONFIG = Config.named("tiny").replace(vocab_size=1024)  # larger than anything but weights
ROWS, SLOTS = 8, 48
TENSOR, FSDP, DATA = {"tensor": 4}, {"fsdp": 4}, {"data": 4}
SHARED = {"tensor": 8}  # two devices a key-value head
MIXED = {"data": 2, "fsdp": 2, "tensor": 2}
MESHES = [TENSOR, SHARED, FSDP, DATA, MIXED]
MOST = [*(pytest.param(shape, marks=pytest.mark.slow) for shape in MESHES[:4]), MIXED]
STEPS = {"decode": 1, "prefill": 6}


@functools.cache
def sharded(shape):
    return shard_params(init_params(jax.random.key(0), CONFIG), make_mesh(**dict(shape)))


@functools.cache
def compiled_step(shape, time):
    """`forward` of some tokens on a cache with a past, compiled for a mesh."""
    params = sharded(shape)
    cache = KVCache.empty(CONFIG, batch=ROWS, slots=SLOTS, dtype=params.dtype)
    cache = jax.device_put(cache, sharding_of(mesh_of(params), CACHE))
    cache = dataclasses.replace(cache, fresh=time > 1)
    tokens = jnp.zeros((ROWS, time), jnp.int32)
    jitted = jax.jit(forward, donate_argnums=3)
    return jitted.lower(params, tokens, tokens, cache).compile()


@functools.cache
def compiled_loop(shape):
    """The program that decodes, as `generate` compiles it for a mesh."""
    params = sharded(shape)
    place = Placement.of(params)
    rows = rows_of(CONFIG, [[1, 2]] * ROWS, [SamplingSettings()] * ROWS, 1, None, False)
    (batch,) = batches_of(CONFIG, place, rows)
    mesh = mesh_of(params)

    def lies(leaf):
        by_vocabulary = NEXT_LOGITS if leaf.shape[-1:] == (CONFIG.vocab_size,) else REPLICATED
        sharding = sharding_of(mesh, CACHE if leaf.ndim == 4 else by_vocabulary)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with place.use_mesh():
        reads = functools.partial(prefill, tokens_per_read=2)
        new = NewCache(KVCache, ROWS, SLOTS, jnp.float32)
        state = jax.eval_shape(
            reads, params, new, batch.prompts, batch.lengths, np.int32(0), batch.settings
        )
        state = jax.tree.map(lies, state)
        jitted = jax.jit(decode, static_argnames="tokens_per_check", donate_argnames="state")
        taken, until = np.zeros(ROWS, np.int32), np.int32(9)
        return jitted.lower(
            params, state, batch.settings, taken, until, tokens_per_check=1
        ).compile()


def key(shape):
    return tuple(shape.items())


def parts(shape):
    """How many parts a batch is cut into, and the rest of the model."""
    return shape.get("data", 1) * shape.get("fsdp", 1), shape.get("tensor", 1)


def reductions(shape, time):
    """What tensor parallelism costs a step: two a layer, and one for the embedding."""
    rows, tensor = parts(shape)
    if tensor == 1:
        return {}
    here = ROWS // rows
    embedding = {("all-reduce", (here, time, CONFIG.dim)): 1}
    return embedding | {("all-reduce", (here * time, CONFIG.dim)): 2 * CONFIG.n_layers}


def gathers(shape):
    """What fsdp costs a step: every matrix once, whole but for what `tensor` cuts."""
    if shape.get("fsdp", 1) == 1:
        return Counter()
    params = sharded(key(shape))
    shardings = weight_shardings(CONFIG, mesh_of(params))
    whole = Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params.weights):
        spec = shardings[tuple(k.key for k in path)].spec
        if "fsdp" in spec:
            here = leaf.sharding.shard_shape(leaf.shape)
            full = (n * shape["fsdp"] if cut == "fsdp" else n for n, cut in zip(here, spec))  # noqa: B905
            whole["all-gather", tuple(full)] += 1
    return whole


@pytest.mark.parametrize(
    ("shape", "step"),
    [
        *((shape, "decode") for shape in MESHES),
        *(pytest.param(shape, "prefill", marks=pytest.mark.slow) for shape in MESHES[:-1]),
        (MIXED, "prefill"),
    ],
    ids=str,
)
def test_a_step_costs_two_reductions_a_layer_and_a_gather_a_weight_and_nothing_else(shape, step):
    params = sharded(key(shape))
    found = collectives(compiled_step(key(shape), STEPS[step]).as_text(), mesh_of(params))
    counted = Counter((c.kind, c.shape) for c in found)
    assert counted == Counter(reductions(shape, STEPS[step])) + gathers(shape)
    for c in found:
        assert set(c.axes) <= ({"fsdp"} if c.kind == "all-gather" else {"tensor", "copies"}), c


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_a_step_writes_the_cache_where_it_lies(shape):
    step = compiled_step(key(shape), 1)
    held = memory(CONFIG, dtype="float32", batch=ROWS, context=SLOTS, **shape)
    assert step.memory_analysis().alias_size_in_bytes == held.cache_per_device
    rows, tensor = parts(shape)
    heads = max(1, CONFIG.n_kv_heads // tensor)
    part = f"f32[{ROWS // rows},{heads},{SLOTS},{CONFIG.head_dim}]"
    text = step.as_text()
    assert part in text
    assert not [line for line in text.splitlines() if f"= {part}" in line and " copy(" in line]
    given = jax.tree.leaves(step.input_shardings[0][3])
    assert step.output_shardings[1].k[0].is_equivalent_to(given[0], 4)


@pytest.mark.parametrize("shape", MOST, ids=str)
def test_decoding_adds_only_what_fits_in_a_few_numbers_a_row(shape):
    """No logits are gathered: greedy, top-k, top-p and logprobs see their own tokens."""
    params = sharded(key(shape))
    found = collectives(compiled_loop(key(shape)).as_text(), mesh_of(params))
    step = [c for c in found if not c.entry]
    expected = Counter(reductions(shape, 1)) + gathers(shape)
    rest = Counter((c.kind, c.shape) for c in step)
    assert not expected - rest, "all that the forward costs is in the loop, and no weight outside"
    few = MAX_LOGPROBS * shape.get("tensor", 1)
    rows = ROWS // parts(shape)[0]
    for kind, dims in rest - expected:
        assert np.prod(dims) <= rows * few < rows * CONFIG.vocab_size, (kind, dims)


@pytest.mark.parametrize("shape", MOST[3:], ids=str)
def test_rows_on_different_devices_exchange_one_bit_a_question(shape):
    params = sharded(key(shape))
    for c in collectives(compiled_loop(key(shape)).as_text(), mesh_of(params)):
        if not c.entry and "data" in c.axes:
            assert (c.kind, c.dtype, c.shape) == ("all-reduce", "pred", ()), c


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_what_a_program_is_given_is_what_memory_says(shape):
    tokens = 2 * ROWS // parts(shape)[0] * np.dtype(np.int32).itemsize
    held = memory(CONFIG, dtype="float32", batch=ROWS, context=SLOTS, **shape)
    given = compiled_step(key(shape), 1).memory_analysis().argument_size_in_bytes
    replicated = 2 * ROWS * np.dtype(np.int32).itemsize
    assert given in (held.per_device + tokens, held.per_device + replicated)


@pytest.mark.parametrize("shape", [TENSOR, SHARED, FSDP, MIXED], ids=str)
def test_the_weights_on_a_device_fall_as_one_over_tensor_and_fsdp(shape):
    params = sharded(key(shape))
    one = memory(CONFIG, dtype="float32", batch=ROWS, context=SLOTS)
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params.weights))
    assert here == memory(CONFIG, dtype="float32", batch=1, context=1, **shape).weights_per_device
    norms = (2 * CONFIG.n_layers + 1) * CONFIG.dim * 4  # whole everywhere
    cut = shape.get("fsdp", 1) * shape.get("tensor", 1)
    shared = 2 * CONFIG.n_layers * CONFIG.dim * CONFIG.n_kv_heads * CONFIG.head_dim * 4
    copies = max(1, shape.get("tensor", 1) // CONFIG.n_kv_heads)
    assert here == norms + (one.weights - norms - shared) // cut + shared * copies // cut


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_the_cache_on_a_device_falls_with_rows_and_heads(shape):
    one = memory(CONFIG, dtype="float32", batch=ROWS, context=SLOTS)
    here = memory(CONFIG, dtype="float32", batch=ROWS, context=SLOTS, **shape)
    rows, tensor = parts(shape)
    assert here.cache_per_device == one.cache // rows // min(tensor, CONFIG.n_kv_heads)


def test_a_vocabulary_that_tensor_does_not_divide_costs_one_gather_of_its_logits():
    """And no weight: JAX from 0.11.2 on cannot say how a program's result is cut unevenly."""
    config = CONFIG.replace(vocab_size=1022)
    params = shard_params(init_params(jax.random.key(0), config), make_mesh(tensor=4))
    assert params.weights["output"]["weight"].shape == (config.dim, 1024)
    tokens = jnp.zeros((ROWS, 1), jnp.int32)

    def argmax(params, tokens):
        return jnp.argmax(forward(params, tokens, tokens)[0], axis=-1)

    found = collectives(jax.jit(argmax).lower(params, tokens).compile().as_text(), mesh_of(params))
    *others, logits = sorted(c.size for c in found)
    assert max(others) == ROWS * CONFIG.dim
    assert logits == ROWS * 1024
