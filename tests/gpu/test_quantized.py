"""What XLA makes of one step of 8B with quantized weights for an H100."""

import re

import jax
import jax.numpy as jnp
import pytest
from compiled_text import program
from programs import LLAMA_8B, SMALLEST, cache_of, compiled_step, mesh_of, params_of, shallow

from llama_jax.sharding.arrays import weight_shardings
from llama_jax.weights.params import nested, weight_at
from llama_jax.weights.quantize import kind_of, rounded_weight
from llama_jax.weights.weight import map_parts, part_spec

KINDS = ["int8", "int8_channel", "fp8", "int4"]
IN_GROUPS = ("int8", "int4")
LAYERS = 2


def quantized_params(config, mesh, kind):
    """Shapes of a model whose matrices are quantized, laid out over the mesh."""
    params, weights = params_of(config, mesh), {}
    for path, sharding in weight_shardings(config, mesh).items():
        array = weight_at(params.weights, path)
        how = kind_of(kind, path, array.shape)
        if how is None:
            weights[path] = array
            continue
        value = rounded_weight(jax.ShapeDtypeStruct(array.shape, jnp.bfloat16), how, path)
        weights[path] = map_parts(
            value,
            lambda part, axes, lies=sharding: jax.ShapeDtypeStruct(
                part.shape,
                part.dtype,
                sharding=jax.sharding.NamedSharding(lies.mesh, part_spec(axes, lies.spec)),
            ),
        )
    return params.replace(weights=nested(weights))


def step_of(devices, kind, batch, **sizes):
    config, mesh = shallow(LLAMA_8B, LAYERS), mesh_of(devices, **sizes)
    cache = cache_of(config, mesh, batch=batch, slots=1024)
    params = params_of(config, mesh) if kind is None else quantized_params(config, mesh, kind)
    return compiled_step(params, cache, mesh, time=1)


@pytest.mark.parametrize(
    ("kind", "batch"),
    [*((kind, 1) for kind in KINDS), ("int8_channel", 8), ("fp8", 8)],
)
def test_each_quantized_weight_is_read_once_and_no_other_form_of_it_written(h100s, kind, batch):
    """Sums by group, float32, are a quarter of int4's words and an eighth of int8's numbers at one
    row; nothing else is near a weight's size."""
    compiled = step_of(h100s, kind, batch)
    text = program(compiled.as_text())
    readers = text.readers(SMALLEST // 8)
    of_weights = {
        name: [kernel.name for kernel in kernels]
        for name, kernels in readers.items()
        if re.match(r"(s8|u8|s32)\[", text.array(name).shape)
    }
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    print(f"{kind}, {batch} rows: temporaries {temporaries / 1e6:.1f} MB", end=" ")
    assert len(of_weights) == 7 * LAYERS + 1
    assert {name: by for name, by in of_weights.items() if len(by) != 1} == {}
    assert text.large_outputs(SMALLEST) == []
    assert temporaries < (2 * SMALLEST if kind in IN_GROUPS else SMALLEST / 2)


@pytest.mark.parametrize("rows", [2, 8])
def test_a_few_rows_read_int8_in_groups_once_and_write_sums_by_group(h100s, rows):
    """[groups, rows, out] in float32: at eight rows as many bytes as the weight's numbers."""
    compiled = step_of(h100s, "int8", rows)
    text = program(compiled.as_text())
    of_weights = {
        name: [kernel.name for kernel in kernels]
        for name, kernels in text.readers(SMALLEST // 8).items()
        if text.array(name).shape.startswith("s8[")
    }
    assert len(of_weights) == 7 * LAYERS + 1
    assert {name: by for name, by in of_weights.items() if len(by) != 1} == {}
    for kernel in text.large_outputs(SMALLEST):
        assert re.search(rf" writes f32\[\d+,{rows},\d+\]", str(kernel)), kernel
    sums = 4 * rows * LLAMA_8B.vocab_size * LLAMA_8B.dim // 32
    assert compiled.memory_analysis().temp_size_in_bytes < 1.02 * sums


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_parallel_quantized_weights_cost_the_same_collectives(h100s, kind):
    whole = program(step_of(h100s, None, 8, tensor=8).as_text()).collectives()
    found = program(step_of(h100s, kind, 8, tensor=8).as_text()).collectives()
    assert sorted(found) == sorted(whole)
