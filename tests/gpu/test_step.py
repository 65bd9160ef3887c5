"""What XLA makes of one step of 8B for an H100: promises read from the compiled program."""

import pytest
from compiled_text import program
from contracts import (
    KERNELS_A_LAYER,
    caches_misused,
    caches_read_by_xla,
    kernels_beyond,
    products,
    taken_by_loops,
    weights_not_read_once,
)
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

SLOTS, LAYERS = 4096, 2
KEPT = 4 * (LLAMA_8B.n_heads + 2 * LLAMA_8B.n_kv_heads) * LLAMA_8B.head_dim * 4
"""What a row keeps of each layer until the cache is written, after the last: q, k and v in float32,
as the four sums that XLA cuts their product into."""


def decode_step(devices, batch, layers=LAYERS, **sizes):
    config, mesh = shallow(LLAMA_8B, layers), mesh_of(devices, **sizes)
    cache = cache_of(config, mesh, batch=batch, slots=SLOTS)
    return compiled_step(params_of(config, mesh), cache, mesh, time=1), nbytes(cache)


@pytest.fixture(scope="module", params=[1, 8], ids="batch{}".format)
def step(request, h100s):
    """One decode step of two layers, and its cache's bytes."""
    return decode_step(h100s, request.param)


def test_a_step_writes_nothing_of_a_weights_or_a_caches_size(step):
    compiled, _ = step
    assert program(compiled.as_text()).large_outputs(SMALLEST) == []
    assert compiled.memory_analysis().temp_size_in_bytes < SMALLEST


def test_a_step_updates_the_cache_in_place(step):
    compiled, cache_bytes = step
    assert compiled.memory_analysis().alias_size_in_bytes == cache_bytes


def test_each_weight_is_read_by_one_kernel(step):
    compiled, _ = step
    text = program(compiled.as_text())
    assert weights_not_read_once(text, 7 * LAYERS + 2, SMALLEST) == []


def test_a_cache_is_read_by_the_attention_kernel_alone_and_then_written_in_place(step):
    compiled, _ = step
    text = program(compiled.as_text())
    assert caches_misused(text, 2 * LAYERS, SMALLEST) == []
    assert caches_read_by_xla(text, SMALLEST) == []
    assert taken_by_loops(text, SMALLEST) == []


@pytest.mark.parametrize(("batch", "kernels"), KERNELS_A_LAYER.items())
def test_the_full_model_too_and_its_kernels_per_layer(h100s, batch, kernels):
    """The number may fall, and must not grow; temporaries only with what is to be written."""
    compiled, cache_bytes = decode_step(h100s, batch, LLAMA_8B.n_layers)
    whole, part = program(compiled.as_text()), program(decode_step(h100s, batch)[0].as_text())
    assert whole.large_outputs(SMALLEST) == []
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == cache_bytes
    more = (len(whole.kernels) - len(part.kernels)) / (LLAMA_8B.n_layers - LAYERS)
    print(
        f"8B, {batch} rows of {SLOTS} slots: {len(whole.kernels)} kernels, {more:.1f} a layer; "
        f"temporaries {memory.temp_size_in_bytes / 1e6:.1f} MB"
    )
    kept = LLAMA_8B.n_layers * max(2, batch) * KEPT  # one row is padded to two
    assert memory.temp_size_in_bytes < kept + SMALLEST / 2
    assert kernels_beyond(whole, part, LLAMA_8B.n_layers - LAYERS, kernels) == []


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        *((batch, {"tensor": tensor}) for batch in (1, 8) for tensor in (1, 8)),
        (8, {"data": 8}),
        (8, {"data": 2, "tensor": 4}),
    ],
)
def test_q_k_and_v_are_one_product(h100s, batch, sizes):
    """Where `tensor` cuts them, so are `w1` and `w3`."""
    compiled, _ = decode_step(h100s, batch, **sizes)
    tensor = sizes.get("tensor", 1)
    shape = lambda columns: f"bf16[{LLAMA_8B.dim},{columns // tensor}]"  # noqa: E731
    heads = (LLAMA_8B.n_heads, LLAMA_8B.n_kv_heads, LLAMA_8B.n_kv_heads)
    wanted = [[shape(n * LLAMA_8B.head_dim) for n in heads]]
    wanted += [[shape(LLAMA_8B.hidden_dim)] * 2] if tensor > 1 else []
    found = products(program(compiled.as_text()), SMALLEST // tensor)
    assert found == {tuple(sorted(shapes)): LAYERS for shapes in wanted}
