"""The contracts fail when they should: programs with a known fault, and the check that sees it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_text import program
from contracts import (
    KERNELS_A_LAYER,
    caches_misused,
    collectives_other_than,
    kernels_beyond,
    taken_by_loops,
    weights_not_read_once,
)
from faults import (
    SlotsFirst,
    looks_at_a_weight_again,
    looks_at_the_past,
    looks_at_the_past_block_by_block,
    looks_at_what_it_wrote,
)
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from programs import (
    LLAMA_8B,
    SMALLEST,
    cache_of,
    compiled_step,
    laid_out,
    mesh_of,
    nbytes,
    params_of,
    shallow,
)

from llama_jax.kernels import linear
from llama_jax.model.transformer import forward
from llama_jax.ops.swiglu import swiglu
from llama_jax.sharding.arrays import constrain

CONFIG, SLOTS = shallow(LLAMA_8B, 2), 4096


def planted_step(devices, run=forward, batch=8, config=CONFIG, **sizes):
    """A step that runs something else than the model's own, or a part that was replaced."""
    mesh = mesh_of(devices, **sizes)
    cache = cache_of(config, mesh, batch=batch, slots=SLOTS)
    return program(compiled_step(params_of(config, mesh), cache, mesh, time=1, run=run).as_text())


def test_a_missing_donation_is_caught(h100s):
    mesh = mesh_of(h100s)
    cache = cache_of(CONFIG, mesh, batch=1, slots=SLOTS)
    compiled = compiled_step(params_of(CONFIG, mesh), cache, mesh, time=1, donate=())
    assert compiled.memory_analysis().alias_size_in_bytes < nbytes(cache)
    found = program(compiled.as_text()).large_outputs(SMALLEST)
    assert len(found) == 2 * CONFIG.n_layers
    assert all("copy" in fault for fault in found)


def test_a_scan_over_stacked_weights_is_caught(h100s):
    """Each step of it slices a layer's weights out of the stack: a copy of the weight."""
    whole = NamedSharding(mesh_of(h100s), P())
    layer = params_of(CONFIG, whole.mesh).weights["layers_0"]["feed_forward"]
    stacked = jax.tree.map(
        lambda w: jax.ShapeDtypeStruct((4, *w.shape), w.dtype, sharding=whole), layer
    )
    x = jax.ShapeDtypeStruct((8, CONFIG.dim), jnp.bfloat16, sharding=whole)

    def block(x, w):
        return x + linear(swiglu(linear(x, w["w1"]), linear(x, w["w3"])), w["w2"]), None

    compiled = jax.jit(lambda w, x: jax.lax.scan(block, x, w)[0]).lower(stacked, x).compile()
    found = program(compiled.as_text()).large_outputs(SMALLEST)
    assert len(found) >= 3


def test_a_cache_that_attention_turns_around_is_caught(h100s):
    mesh = mesh_of(h100s)
    cache = cache_of(CONFIG, mesh, batch=8, slots=SLOTS)
    compiled = compiled_step(params_of(CONFIG, mesh), SlotsFirst.like(cache), mesh, time=1)
    assert program(compiled.as_text()).large_outputs(SMALLEST) != []


def test_a_weight_that_is_read_twice_is_caught(h100s):
    text = planted_step(h100s, looks_at_a_weight_again)
    (found,) = weights_not_read_once(text, 7 * CONFIG.n_layers + 2, SMALLEST)
    assert "w1" in found


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("run", [looks_at_the_past, looks_at_what_it_wrote])
def test_a_second_reader_of_a_cache_is_caught(h100s, run, batch):
    """As a second kernel that takes it, or as the copy that XLA makes for that kernel."""
    text = planted_step(h100s, run, batch)
    assert all("copy" in fault for fault in text.large_outputs(SMALLEST))
    (found,) = caches_misused(text, 2 * CONFIG.n_layers, SMALLEST)
    assert found.startswith("cache_k_0_")


def test_a_reader_inside_a_loop_is_caught(h100s):
    text = planted_step(h100s, looks_at_the_past_block_by_block)
    assert taken_by_loops(text, SMALLEST) != []


def test_more_kernels_a_layer_are_caught(h100s, replace):
    """Where each product scales its input by itself, no two are one."""
    deep, allowed = shallow(LLAMA_8B, CONFIG.n_layers + 1), KERNELS_A_LAYER[8]
    both = lambda: (planted_step(h100s, config=deep), planted_step(h100s))  # noqa: E731
    assert kernels_beyond(*both(), 1, allowed) == []
    replace("llama_jax.model.transformer.linear", lambda x, w: linear(x * w[0, 0], w))
    assert kernels_beyond(*both(), 1, allowed) != []


def test_a_weight_that_is_gathered_is_caught(h100s, replace):
    """Under `tensor` a product needs its own part alone."""
    allowed = ["all-reduce"] * (2 * CONFIG.n_layers + 1)
    replace("llama_jax.model.transformer.linear", lambda x, w: linear(x, constrain(w, P())))
    (found,) = collectives_other_than(planted_step(h100s, tensor=8), allowed)
    assert "all-gather" in found


def test_a_program_that_is_not_cut_is_caught(h100s, replace):
    """Eight cards that each compute all of it have nothing to say to each other."""
    replace("llama_jax.sharding.arrays.gather_fsdp", lambda w, *_: w)
    replace("llama_jax.model.transformer.constrain", lambda x, *_, **__: x)
    replace("llama_jax.kernels.gpu.per_device", lambda f, *_: f)
    mesh = mesh_of(h100s, tensor=8)
    cache = cache_of(CONFIG, mesh, batch=8, slots=SLOTS)
    whole = lambda x: laid_out(x, NamedSharding(mesh, P()))  # noqa: E731
    params, cache = jax.tree.map(whole, (params_of(CONFIG, mesh), cache))
    text = program(compiled_step(params, cache, mesh, time=1).as_text())
    assert text.collectives() == []
    assert collectives_other_than(text, ["all-reduce"] * (2 * CONFIG.n_layers + 1)) != []


def test_a_call_of_python_inside_a_loop_is_caught(h100s):
    """What `jax.debug.print` or `jax.pure_callback` compile to for a GPU."""
    number = jax.ShapeDtypeStruct((), jnp.float32)
    python = jax.ffi.ffi_call("xla_ffi_python_gpu_callback", number, has_side_effect=True)

    def turn(x, _):
        return x + python(x[0], index=np.uint64(0)), None

    x = jax.ShapeDtypeStruct((1024,), jnp.float32, sharding=NamedSharding(mesh_of(h100s), P()))
    compiled = jax.jit(lambda x: jax.lax.scan(turn, x, length=8)[0]).lower(x).compile()
    assert len(program(compiled.as_text()).host_waits()) == 1


def test_a_branch_inside_a_loop_is_caught(h100s):
    """The host reads which branch to launch: a loop with one waits at every turn."""

    def turn(x, _):
        return jax.lax.cond(jnp.any(x > 3), lambda x: jnp.sort(x), lambda x: x + 1, x), None

    x = jax.ShapeDtypeStruct((1024,), jnp.float32, sharding=NamedSharding(mesh_of(h100s), P()))
    compiled = jax.jit(lambda x: jax.lax.scan(turn, x, length=8)[0]).lower(x).compile()
    waits = program(compiled.as_text()).host_waits()
    assert len(waits) == 1
    assert waits[0].startswith("cond")
