"""Eight H100s: what they say to each other, and what each holds."""

import pytest
from compiled_text import program
from contracts import collectives_beyond
from programs import (
    LLAMA_8B,
    LLAMA_70B,
    cache_of,
    compiled_step,
    mesh_of,
    nbytes,
    params_of,
    shallow,
)

LAYERS = 2
H100_BYTES = 80e9


def step_on(devices, config, *, batch, time, slots=4096, **sizes):
    mesh = mesh_of(devices, **sizes)
    cache = cache_of(config, mesh, batch=batch, slots=slots, fresh=time > 1)
    return compiled_step(params_of(config, mesh), cache, mesh, time=time)


@pytest.mark.parametrize("time", [1, 512], ids=["decode", "prefill"])
def test_tensor_parallelism_costs_two_all_reduces_a_layer(h100s, time):
    config = shallow(LLAMA_8B, LAYERS)
    compiled = step_on(h100s, config, batch=8, time=time, tensor=8)
    allowed = ["all-reduce"] * (2 * LAYERS + 1)  # one for the embedding
    assert collectives_beyond(program(compiled.as_text()), allowed) == []


def test_data_parallelism_costs_nothing(h100s):
    config = shallow(LLAMA_8B, LAYERS)
    compiled = step_on(h100s, config, batch=8, time=1, data=8)
    assert collectives_beyond(program(compiled.as_text()), []) == []


def test_fsdp_gathers_each_weight_once_and_nothing_else(h100s):
    config = shallow(LLAMA_8B, LAYERS)
    compiled = step_on(h100s, config, batch=8, time=1, fsdp=8)
    found = program(compiled.as_text()).collectives()
    assert found == ["all-gather"] * len(found)
    assert len(found) <= 7 * LAYERS + 2


@pytest.mark.slow
def test_70b_fits_eight_h100s_with_long_texts(h100s):
    """Per device, in bf16, with 8 rows of 8,192 positions: decode, and a prompt's chunk."""
    mesh = mesh_of(h100s, tensor=8)
    params = params_of(LLAMA_70B, mesh)
    cache = cache_of(LLAMA_70B, mesh, batch=8, slots=8192)
    weights, past = nbytes(params, of_a_device=True), nbytes(cache, of_a_device=True)
    for time in (1, 512):
        memory = compiled_step(params, cache, mesh, time=time).memory_analysis()
        temporary = memory.temp_size_in_bytes
        print(
            f"time={time}: weights {weights / 1e9:.2f} GB, cache {past / 1e9:.2f} GB, "
            f"temporaries {temporary / 1e9:.3f} GB"
        )
        assert weights + past <= memory.argument_size_in_bytes < (weights + past) * 1.001
        assert memory.argument_size_in_bytes + temporary < H100_BYTES
