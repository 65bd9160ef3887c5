import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.train.order import Order, permuted

seeds = st.integers(0, 2**32 - 1)


@given(st.integers(1, 3000), seeds, st.integers(0, 2**31))
@settings(deadline=None)
def test_an_epoch_has_every_row_once(rows, seed, epoch):
    found = permuted(np.arange(rows), rows, seed, epoch)
    assert sorted(found.tolist()) == list(range(rows))


@given(st.integers(1, 200), st.integers(1, 50), seeds)
@settings(deadline=None)
def test_batches_follow_each_other_through_the_epochs(rows, batch, seed):
    order = Order(rows, batch, seed)
    steps = -(-3 * rows // batch)
    drawn = np.concatenate([order.at(step) for step in range(steps)])
    for epoch in range(3):
        assert sorted(drawn[epoch * rows :][:rows].tolist()) == list(range(rows))


@given(st.integers(2**31, 2**50), seeds)
@settings(deadline=None)
def test_many_rows_cost_no_more_than_a_batch(rows, seed):
    found = Order(rows, 64, seed).at(10**9)
    assert len(set(found.tolist())) == 64
    assert found.min() >= 0
    assert found.max() < rows


def test_epochs_and_seeds_differ():
    orders = [permuted(np.arange(100), 100, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order.tolist()) for order in orders}) == 6


@pytest.mark.parametrize("rows", [2, 3, 5, 16, 100])
def test_a_row_comes_anywhere_in_an_epoch(rows):
    epochs = 4000
    first = np.array([permuted(np.arange(1), rows, 7, epoch)[0] for epoch in range(epochs)])
    counts = np.bincount(first, minlength=rows)
    assert (abs(counts - epochs / rows) < 5 * np.sqrt(epochs / rows)).all()


def test_neighbours_in_the_text_are_no_neighbours_in_the_order():
    found = permuted(np.arange(10_000), 10_000, 3, 0)
    assert (abs(np.diff(found)) == 1).sum() < 20
    assert abs(np.corrcoef(found, np.arange(10_000))[0, 1]) < 0.05


def test_the_order_stays_what_it_was():
    """Runs that were interrupted under an older version depend on these numbers."""
    assert Order(10, 10, 0).at(0).tolist() == [3, 9, 4, 5, 1, 7, 8, 0, 6, 2]
    assert Order(1_000_003, 4, 42).at(123).tolist() == [462673, 966664, 616979, 138211]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ((0, 4, 0), "rows=0 must be a positive integer"),
        ((4, 0, 0), "batch=0 must be a positive integer"),
        ((4, 4, -1), r"seed=-1 must be an integer from 0 to 2\*\*32 - 1"),
        ((4, 4, True), "seed=True must be an integer"),
    ],
)
def test_an_order_of_nothing_is_refused(fields, error):
    with pytest.raises(ValueError, match=error):
        Order(*fields)
