"""What XLA makes of a step where our kernel is not to be had: its own attention copies nothing."""

import jax
import pytest
from compiled_text import program
from contracts import (
    caches_misused,
    caches_read_by_xla,
    kernels_beyond,
    weights_not_read_once,
)
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from programs import (
    LLAMA_8B,
    SMALLEST,
    cache_of,
    compiled_step,
    mesh_of,
    nbytes,
    params_of,
    shallow,
)

from llama_jax import kernels

LAYERS, SLOTS = 2, 4096
KERNELS_A_LAYER = {1: 22, 8: 19}
"""By the rows of a batch."""


@pytest.fixture(params=KERNELS_A_LAYER, ids="batch{}".format)
def batch(request, replace):
    replace("llama_jax.kernels.gpu.has_step_kernel", lambda *_, **__: False)
    return request.param


def step_of(devices, batch, layers=LAYERS):
    config, mesh = shallow(LLAMA_8B, layers), mesh_of(devices)
    cache = cache_of(config, mesh, batch=batch, slots=SLOTS)
    return compiled_step(params_of(config, mesh), cache, mesh, time=1), nbytes(cache)


def test_a_step_without_our_kernel_copies_nothing_and_reads_each_cache_once(h100s, batch):
    compiled, cache_bytes = step_of(h100s, batch)
    text = program(compiled.as_text())
    assert text.large_outputs(SMALLEST) == []
    assert compiled.memory_analysis().alias_size_in_bytes == cache_bytes
    assert weights_not_read_once(text, 7 * LAYERS + 2, SMALLEST) == []
    assert caches_misused(text, 2 * LAYERS, SMALLEST) == []
    assert len(caches_read_by_xla(text, SMALLEST)) == 2 * LAYERS


def test_its_kernels_a_layer(h100s, batch):
    deep, part = (program(step_of(h100s, batch, n)[0].as_text()) for n in (LAYERS + 1, LAYERS))
    print(f"{batch} rows without our kernel: {deep.launches - part.launches} kernels a layer")
    assert kernels_beyond(deep, part, 1, KERNELS_A_LAYER[batch]) == []


def kernel_of(devices, dtype, past_dtype, group):
    """Our kernel by itself, as `has_step_kernel` tries it."""
    mesh = mesh_of(devices)
    shapes = (1, 1, group, 128), (1, 1, 1, 128), (1, 1, SLOTS, 128)
    whole = NamedSharding(mesh, P())
    q, own, past = (
        jax.ShapeDtypeStruct(shape, of, sharding=whole)
        for shape, of in zip(shapes, (dtype, dtype, past_dtype), strict=True)
    )
    lengths = jax.ShapeDtypeStruct((1,), "int32", sharding=whole)
    with jax.set_mesh(mesh):
        return jax.jit(kernels.gpu.step_kernel).lower(q, own, own, (past, past), lengths).compile()


@pytest.mark.parametrize("group", [1, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_our_kernel_takes_either_dtype_and_a_large_group(h100s, dtype, group):
    text = program(kernel_of(h100s, dtype, dtype, group).as_text())
    assert any("xla.gpu.triton" in i.rest for i in text.kernels)


def test_our_kernel_refuses_a_cache_of_another_dtype(h100s):
    """So what is tried must be of the dtypes that will run."""
    with pytest.raises(ValueError, match="same element type"):
        kernel_of(h100s, "bfloat16", "float32", 4)
