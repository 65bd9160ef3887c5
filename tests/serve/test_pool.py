"""How many pages a pool has: computed from what is given, or from the memory that is free."""

import dataclasses

import jax
import pytest
from helpers import config_of

from llama_jax.generation.placement import Placement
from llama_jax.model.cache import KVCache
from llama_jax.model.int8_cache import Int8KVCache
from llama_jax.model.transformer import init_params
from llama_jax.serve import pool
from llama_jax.serve.pool import pages_of_pool

CONFIG = config_of(max_seq_len=640)
EACH = 2 * 2 * 2 * 64 * 16 * 4  # keys and values, layers, key heads, positions, numbers


@pytest.fixture(scope="module")
def model():
    params = init_params(jax.random.key(0), CONFIG)
    return params, Placement.of(params)


def pages(model, cache_bytes=None, seats=4):
    return pages_of_pool(*model, seats, cache_bytes, 64)


def test_a_pool_has_the_bytes_that_it_was_given(model):
    assert pages(model, 7 * EACH) == 7
    assert pages(model, 8 * EACH - 1) == 7


def test_a_pool_has_no_more_pages_than_can_be_of_use(model):
    assert pages(model, 10**12) == 4 * 4 * 10
    assert pages(model, 10**12, seats=1) == 4 * 10


def test_pages_of_8_bits_are_more(model):
    place = Placement.of(model[0], Int8KVCache)
    each = 2 * 2 * 2 * 64 * (16 + 4)
    assert pages_of_pool(model[0], place, 4, 7 * EACH, 64) == 7 * EACH // each == 22


def test_a_cache_that_has_no_form_in_pages_is_refused(model):
    class Mine(KVCache):
        pass

    with pytest.raises(ValueError, match="cache=Mine has no form in pages"):
        pages_of_pool(model[0], Placement.of(model[0], Mine), 4, None, 64)


def test_no_page_at_all_is_an_error_with_the_way_out(model):
    with pytest.raises(ValueError, match=r"64 tokens take .* GiB; give the cache more"):
        pages(model, EACH - 1)


def test_a_host_gives_a_quarter_of_what_is_free(model, monkeypatch):
    monkeypatch.setattr(pool, "free_memory", lambda: 4 * 9 * EACH)
    assert pages(model) == 9
    monkeypatch.setattr(pool, "HOST_BYTES", 3 * EACH)
    assert pages(model) == 3


def test_a_host_gives_what_all_seats_can_fill_and_no_more(model, monkeypatch):
    monkeypatch.setattr(pool, "free_memory", lambda: 4 * 1000 * EACH)
    assert pages(model) == 4 * 10
    assert pages(model, 41 * EACH) == 41, "what is asked for in bytes may be more"


@pytest.mark.parametrize(("free", "given"), [(15, 15), (17, 16), (33, 32), (39, 36), (950, 896)])
def test_a_little_more_memory_is_the_same_pool_and_the_same_programs(
    model, monkeypatch, free, given
):
    monkeypatch.setattr(pool, "HOST_SHARE", 1.0)
    for bytes_left in (0, EACH // 2):
        monkeypatch.setattr(pool, "free_memory", lambda left=bytes_left: free * EACH + left)
        assert pages(model, seats=200) == given


def test_weights_that_are_still_to_be_read_count_as_taken(model, monkeypatch):
    params, place = model
    shapes = params.replace(weights=jax.eval_shape(lambda: params.weights))
    weights = sum(x.nbytes for x in jax.tree.leaves(params.weights))
    monkeypatch.setattr(pool, "free_memory", lambda: weights + 4 * 9 * EACH)
    assert pages_of_pool(shapes, place, 4, None, 64) == 9


def test_a_device_gives_what_weights_and_a_step_leave(model, monkeypatch):
    params, place = model
    step = 4 * 4 * 4 * 130 + 4 * 4 * 64 * (96 + 64)
    room = {
        "bytes_limit": 10**6 + step,
        "bytes_in_use": int(0.9 * (10**6 + step)) - step - 5 * EACH,
    }

    @dataclasses.dataclass
    class Card:
        def memory_stats(self):
            return room

    monkeypatch.setattr(pool.jax, "devices", lambda: [Card()])
    assert pages_of_pool(params, place, 4, None, 64) in (4, 5)  # by rounding
