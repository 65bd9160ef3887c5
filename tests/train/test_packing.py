import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.train.packing import best_fit


@given(st.lists(st.integers(1, 64), max_size=200))
@settings(deadline=None)
def test_every_example_is_in_one_row_and_no_row_is_too_long(lengths):
    rows = best_fit(np.array(lengths, np.uint64), 64)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    used = [sum(lengths[index] for index in row) for row in rows]
    assert all(total <= 64 for total in used)
    assert sum(total <= 32 for total in used) <= 1  # two such rows would be one
    assert rows == best_fit(np.array(lengths, np.uint64), 64)


def test_an_example_goes_into_the_row_that_it_fills_best():
    assert best_fit(np.array([3, 7, 8, 2, 10]), 10) == [[4], [2, 3], [1, 0]]


def test_a_large_set_wastes_little():
    lengths = np.random.default_rng(0).lognormal(5, 1, 50_000).astype(int).clip(1, 2048)
    rows = best_fit(lengths, 2048)
    assert lengths.sum() / (len(rows) * 2048) > 0.99
