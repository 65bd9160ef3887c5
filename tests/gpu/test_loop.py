"""What XLA makes of the loop that decodes, for an H100: nothing is copied, the host runs ahead."""

from collections import Counter

import jax
import pytest
from compiled_text import program
from contracts import caches_misused, caches_read_by_xla, weights_not_read_once
from faults import (
    SlotsFirst,
    looks_at_a_weight_again,
    looks_at_the_past,
    looks_at_the_past_block_by_block,
    looks_at_what_it_wrote,
)
from programs import (
    LLAMA_8B,
    SMALLEST,
    cache_of,
    compiled_loop,
    mesh_of,
    nbytes,
    params_of,
    shallow,
    tokens_of,
)

from llama_jax.generation.limits import limits_on
from llama_jax.generation.loop import decode
from llama_jax.generation.placement import Placement
from llama_jax.kernels import COMPILER_OPTIONS

CONFIG, SLOTS, CHUNK = shallow(LLAMA_8B, 2), 4096, 8
WEIGHTS, CACHES = 7 * CONFIG.n_layers + 2, 2 * CONFIG.n_layers
KERNELS_A_TOKEN = {1: 64, 8: 54 if jax.__version_info__ >= (0, 12) else 52}
"""Of a greedy token of two layers, by the rows: the model's, the choice, the stops, the state. They
may fall. From JAX 0.12 on, XLA copies two numbers of each of 8 rows: how many tokens it has, and
whether it ended."""

SAYS_MORE = {"all-reduce": 1, "all-gather": 1}, {"all-reduce": 10, "all-gather": 2}
"""What eight cards say about a token beyond the model: a greedy one, and one by settings."""


def loop_of(devices, kind=lambda cache: cache, batch=8, **options):
    """The program with a kind of cache, and the bytes of that."""
    mesh = mesh_of(devices)
    cache = kind(cache_of(CONFIG, mesh, batch=batch, slots=SLOTS))
    return compiled_loop(CONFIG, cache, mesh, chunk=CHUNK, **options), nbytes(cache)


@pytest.fixture(scope="module", params=[1, 8], ids="batch{}".format)
def batch(request):
    return request.param


@pytest.fixture(scope="module")
def loop(h100s, batch):
    return loop_of(h100s, batch=batch)


@pytest.fixture(scope="module")
def tokens(loop):
    return tokens_of(program(loop[0].as_text()), CHUNK)


def test_the_loop_copies_nothing_of_a_weights_size_and_keeps_its_state_in_place(loop):
    compiled, cache_bytes = loop
    assert program(compiled.as_text()).large_outputs(SMALLEST) == []
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache_bytes
    print(f"temporaries of the loop: {memory.temp_size_in_bytes / 1e6:.1f} MB")
    assert memory.temp_size_in_bytes < 3 * SMALLEST


def test_the_host_is_asked_once_a_chunk(h100s):
    place = Placement.of(params_of(CONFIG, mesh_of(h100s)))
    assert limits_on(place.platform).tokens_per_check == CHUNK


def test_a_token_reads_each_weight_once(tokens):
    for token in tokens:
        assert weights_not_read_once(token, WEIGHTS, SMALLEST) == []


def test_a_token_reads_a_cache_by_our_kernel_alone_and_then_writes_it_in_place(tokens):
    for token in tokens:
        assert caches_misused(token, CACHES, SMALLEST) == []
        assert caches_read_by_xla(token, SMALLEST) == []


def test_the_host_waits_for_nothing_inside_a_chunk(tokens):
    assert [token.host_waits() for token in tokens] == [[], []]


@pytest.mark.parametrize(
    ("rows", "sizes"), [(1, {"tensor": 8}), (8, {"tensor": 8}), (8, {"data": 8})]
)
def test_on_eight_cards_a_token_keeps_to_the_same(h100s, rows, sizes):
    mesh, tensor = mesh_of(h100s, **sizes), sizes.get("tensor", 1)
    cache = cache_of(CONFIG, mesh, batch=rows, slots=SLOTS)
    compiled = compiled_loop(CONFIG, cache, mesh, chunk=CHUNK)
    held = nbytes(cache, of_a_device=True)
    assert compiled.memory_analysis().alias_size_in_bytes >= held
    small, model = SMALLEST // tensor, {"all-reduce": 2 * CONFIG.n_layers + 1 if tensor > 1 else 0}
    tokens = sorted(tokens_of(program(compiled.as_text()), CHUNK), key=lambda t: len(t.kernels))
    for token, more in zip(tokens, SAYS_MORE, strict=True):
        assert weights_not_read_once(token, WEIGHTS, small) == []
        assert caches_misused(token, CACHES, small) == []
        assert caches_read_by_xla(token, small) == []
        assert token.host_waits() == []
        print(f"{rows} rows, {sizes}: a token says {Counter(token.collectives())}")
        assert Counter(token.collectives()) <= Counter(model) + Counter(more)


def test_the_likeliest_token_costs_few_kernels(tokens, batch):
    found = sorted(len(token.kernels) for token in tokens)
    print(f"{batch} rows: {found} kernels a token, the likeliest and by settings")
    assert found[0] <= KERNELS_A_TOKEN[batch]


def test_a_loop_whose_state_is_not_donated_is_caught(h100s):
    compiled, cache_bytes = loop_of(
        h100s,
        loop=jax.jit(decode, static_argnames="tokens_per_check", compiler_options=COMPILER_OPTIONS),
    )
    assert compiled.memory_analysis().alias_size_in_bytes < cache_bytes
    found = program(compiled.as_text()).large_outputs(SMALLEST)
    assert len(found) >= CACHES
    assert all("copy" in fault for fault in found)


def test_a_cache_that_attention_turns_around_is_caught(h100s):
    """XLA turns it around once for all tokens, before the loop, and back after it."""
    compiled, _ = loop_of(h100s, SlotsFirst.like)
    assert len(program(compiled.as_text()).large_outputs(SMALLEST)) >= CACHES


@pytest.mark.parametrize(
    "fault", [looks_at_the_past, looks_at_what_it_wrote, looks_at_the_past_block_by_block]
)
def test_a_token_that_looks_at_a_cache_again_is_caught(h100s, replace, fault):
    replace("llama_jax.generation.loop.forward", fault)
    for token in tokens_of(program(loop_of(h100s)[0].as_text()), CHUNK):
        assert caches_misused(token, CACHES, SMALLEST) != []


def test_a_token_that_reads_a_weight_twice_is_caught(h100s, replace):
    replace("llama_jax.generation.loop.forward", looks_at_a_weight_again)
    for token in tokens_of(program(loop_of(h100s)[0].as_text()), CHUNK):
        (found,) = weights_not_read_once(token, WEIGHTS, SMALLEST)
        assert found.count("'") == 4  # two kernels
