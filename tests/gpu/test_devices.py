"""Eight H100s: what they say to each other, and what each holds."""

from collections import Counter

import jax
import pytest
from collectives import collectives
from compiled_text import program
from contracts import (
    caches_misused,
    caches_read_by_xla,
    collectives_other_than,
    weights_not_read_once,
)
from programs import (
    LLAMA_8B,
    LLAMA_70B,
    SMALLEST,
    cache_of,
    compiled_step,
    mesh_of,
    nbytes,
    params_of,
    shallow,
)

LAYERS, ROWS, SLOTS = 2, 8, 4096
CONFIG = shallow(LLAMA_8B, LAYERS)
H100_BYTES = 80e9


def step_on(devices, *, time=1, rows=ROWS, **sizes):
    mesh = mesh_of(devices, **sizes)
    cache = cache_of(CONFIG, mesh, batch=rows, slots=SLOTS, fresh=time > 1)
    return compiled_step(params_of(CONFIG, mesh), cache, mesh, time=time)


def caches_in(text):
    """The sizes of the caches that the program of one device takes."""
    entry = text.computations[text.entry]
    taken = [i.shape.split("{")[0] for i in entry if i.op == "parameter" and i.axes == 4]
    return Counter(taken)


@pytest.mark.parametrize(
    ("rows", "sizes"), [(1, {"tensor": 8}), (ROWS, {"tensor": 8}), (ROWS, {"data": 8})]
)
def test_a_step_of_each_device_reads_its_weights_once_and_copies_nothing(h100s, rows, sizes):
    mesh = mesh_of(h100s, **sizes)
    cache = cache_of(CONFIG, mesh, batch=rows, slots=SLOTS)
    compiled = compiled_step(params_of(CONFIG, mesh), cache, mesh, time=1)
    text, small = program(compiled.as_text()), SMALLEST // sizes.get("tensor", 1)
    # At 8 rows the parts of attention are larger than a card's eighth of wk, and not of wq.
    assert text.large_outputs(small if rows == 1 else max(small, SMALLEST // 2)) == []
    assert weights_not_read_once(text, 7 * LAYERS + 2, small) == []
    assert caches_misused(text, 2 * LAYERS, small) == []
    assert caches_read_by_xla(text, small) == []
    held = nbytes(cache, of_a_device=True)
    assert compiled.memory_analysis().alias_size_in_bytes == held


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("time", [1, 512], ids=["decode", "prefill"])
def test_tensor_parallelism_costs_two_all_reduces_a_layer(h100s, time, rows):
    text = program(step_on(h100s, time=time, rows=rows, tensor=8).as_text())
    wanted = ["all-reduce"] * (2 * LAYERS + 1)  # one for the embedding
    assert collectives_other_than(text, wanted) == []


def test_tensor_parallelism_gives_each_device_its_own_key_head(h100s):
    text = program(step_on(h100s, tensor=8).as_text())
    assert caches_in(text) == {f"bf16[{ROWS},1,{SLOTS},{CONFIG.head_dim}]": 2 * LAYERS}


def test_data_parallelism_gives_each_device_a_row_and_nothing_to_say(h100s):
    text = program(step_on(h100s, data=8).as_text())
    heads = CONFIG.n_kv_heads
    assert caches_in(text) == {f"bf16[1,{heads},{SLOTS},{CONFIG.head_dim}]": 2 * LAYERS}
    assert collectives_other_than(text, []) == []


def test_fsdp_gathers_each_weight_once_and_nothing_else(h100s):
    """Every matrix of a layer, the embedding and the output."""
    mesh = mesh_of(h100s, fsdp=8)
    params = params_of(CONFIG, mesh)
    matrices = [w.shape for w in jax.tree.leaves(params.weights) if len(w.shape) == 2]
    assert len(matrices) == 7 * LAYERS + 2
    found = collectives(step_on(h100s, fsdp=8).as_text(), mesh)
    assert {(c.kind, c.axes) for c in found} == {("all-gather", ("fsdp",))}
    assert Counter(c.shape for c in found) == Counter(matrices)


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
