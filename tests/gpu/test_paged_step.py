"""What XLA makes of one step of 8B over pages, for an H100: it costs what a contiguous one does."""

import pytest
from compiled_text import program
from contracts import (
    KERNELS_A_LAYER,
    caches_misused,
    caches_read_by_xla,
    copies_of_caches,
    kernels_beyond,
    taken_by_loops,
    weights_not_read_once,
)
from programs import (
    LLAMA_8B,
    SMALLEST,
    compiled_step,
    mesh_of,
    nbytes,
    paged_of,
    params_of,
    shallow,
)

from llama_jax.model.int8_paged import Int8Paged
from llama_jax.model.paged import Paged

SLOTS, LAYERS = 4096, 2


def step_over_pages(devices, batch, *, layers=LAYERS, time=1, kind=Paged, **sizes):
    config, mesh = shallow(LLAMA_8B, layers), mesh_of(devices, **sizes)
    cache = paged_of(config, mesh, batch=batch, slots=SLOTS, kind=kind)
    return compiled_step(params_of(config, mesh), cache, mesh, time=time), cache


@pytest.fixture(scope="module", params=[1, 8], ids="batch{}".format)
def step(request, h100s):
    return step_over_pages(h100s, request.param)


def test_a_step_copies_no_pool_and_writes_each_in_place(step):
    compiled, cache = step
    text = program(compiled.as_text())
    assert text.large_outputs(SMALLEST) == []
    assert copies_of_caches(text, cache.k[0].shape) == []
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= nbytes((cache.k, cache.v))
    assert memory.temp_size_in_bytes < SMALLEST


def test_a_pool_is_read_by_the_attention_kernel_alone_and_then_written(step):
    """By one kernel a layer, which reads the pages that the table names."""
    compiled, _ = step
    text = program(compiled.as_text())
    assert caches_misused(text, 2 * LAYERS, SMALLEST) == []
    assert caches_read_by_xla(text, SMALLEST) == []
    assert taken_by_loops(text, SMALLEST) == []
    assert weights_not_read_once(text, 7 * LAYERS + 2, SMALLEST) == []


@pytest.mark.parametrize(("batch", "kernels"), KERNELS_A_LAYER.items())
def test_pages_cost_no_kernel_a_layer(h100s, batch, kernels):
    compiled = [step_over_pages(h100s, batch, layers=n)[0] for n in (LAYERS + 2, LAYERS)]
    deep, part = (program(one.as_text()) for one in compiled)
    print(f"{batch} rows in pages: {(deep.launches - part.launches) / 2} kernels a layer")
    assert kernels_beyond(deep, part, 2, kernels) == []


def test_eight_cards_say_what_they_say_without_pages(h100s):
    compiled, cache = step_over_pages(h100s, 8, tensor=8)
    text = program(compiled.as_text())
    assert text.collectives() == ["all-reduce"] * (2 * LAYERS + 1)
    small = SMALLEST // 8
    assert caches_misused(text, 2 * LAYERS, small) == []
    held = nbytes((cache.k, cache.v), of_a_device=True)
    assert compiled.memory_analysis().alias_size_in_bytes >= held


@pytest.mark.parametrize("sizes", [{}, {"tensor": 8}], ids=str)
def test_pages_of_8_bits_are_read_by_the_same_kernel_and_decoded_nowhere(h100s, sizes):
    compiled, cache = step_over_pages(h100s, 8, kind=Int8Paged, **sizes)
    text = program(compiled.as_text())
    small = SMALLEST // 2 // sizes.get("tensor", 1)
    assert caches_misused(text, 2 * LAYERS, small) == []
    assert caches_read_by_xla(text, small) == []
    assert copies_of_caches(text, cache.k[0].shape) == []
    assert compiled.memory_analysis().temp_size_in_bytes < SMALLEST
    assert text.collectives() == ["all-reduce"] * ((2 * LAYERS + 1) if sizes else 0)


def test_a_chunk_of_one_prompt_copies_no_pool(h100s):
    """Its loop takes eight pages at a time from the pools."""
    compiled, cache = step_over_pages(h100s, 1, time=512)
    text = program(compiled.as_text())
    assert copies_of_caches(text, cache.k[0].shape) == []
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= nbytes((cache.k, cache.v))
