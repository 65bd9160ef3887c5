import itertools
import threading

import jax
import numpy as np
import pytest
from job import Job
from token_files import split_of_tokens, token_folder

from llama_jax.sharding.mesh import make_mesh
from llama_jax.train.batches import batch_sharding, evaluation_batches, put, training_batches
from llama_jax.train.order import Order
from llama_jax.train.rows import Batch, TextRows
from llama_jax.train.token_folder import open_tokens

MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)]
SPLIT = split_of_tokens(range(1000, 1103), starts=[0, 4, 5, 30, 100], shards=3)
ONE = batch_sharding(None, 4)


def arrays(batch):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]


def assert_same(one, two):
    for a, b in zip(arrays(one), arrays(two), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("time", [1, 2, 7, 50])
def test_a_row_is_the_next_piece_of_the_split(time):
    rows = TextRows(SPLIT, time, "joined")
    found = rows.read(np.arange(rows.whole))
    for i in range(rows.whole):
        wanted = np.arange(i * time, (i + 1) * time + 1) + 1000
        assert found.tokens[i].tolist() == wanted[:-1].tolist()
        assert found.targets[i].tolist() == wanted[1:].tolist()
    assert (found.weights == 1).all()
    assert (found.positions == np.arange(time)).all()
    assert [leaf.dtype.name for leaf in jax.tree.leaves(found)] == ["int32"] * 3 + ["float32"]


@pytest.mark.parametrize("time", [1, 2, 7, 50, 102])
def test_positions_of_separate_documents_restart_at_each_start(time):
    rows = TextRows(SPLIT, time, "separate")
    found = rows.read(np.arange(rows.whole)).positions
    starts = set(SPLIT.starts.tolist())
    for i in range(rows.whole):
        position = 0
        for t in range(time):
            position = 0 if t == 0 or i * time + t in starts else position + 1
            assert found[i, t] == position


def test_every_token_but_the_first_is_evaluated_once():
    rows = TextRows(SPLIT, 8, "separate")
    batches = list(evaluation_batches(rows, 5, ONE))
    assert len(batches) == 3
    found = [b.targets[b.weights > 0] for b in map(lambda b: Batch(*arrays(b)), batches)]
    assert np.concatenate(found).tolist() == list(range(1001, 1103))
    last = Batch(*arrays(batches[-1]))
    assert last.weights.sum(axis=1).tolist() == [8, 8, 6, 0, 0]
    assert not last.tokens[3:].any()


@pytest.mark.parametrize(("time", "whole", "padded"), [(102, 1, 1), (103, 0, 1), (1000, 0, 1)])
def test_a_text_shorter_than_a_row_is_evaluated_and_not_trained(time, whole, padded):
    rows = TextRows(SPLIT, time, "joined")
    assert (rows.whole, len(rows)) == (whole, padded)
    [batch] = evaluation_batches(rows, 4, ONE)
    assert float(batch.weights.sum()) == 102
    if not whole:
        with pytest.raises(ValueError, match=r"has 103 tokens, and a row takes .* shorter context"):
            rows.order(4, seed=0)


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_a_batch_is_the_same_on_every_mesh(axes):
    data, fsdp, tensor = axes
    rows = TextRows(SPLIT, 7, "separate")
    sharding = batch_sharding(make_mesh(data=data, fsdp=fsdp, tensor=tensor), 8)
    ids = np.array([3, 1, 13, 0, -1, 2, 13, -1])
    assert_same(put(rows, ids, sharding), put(rows, ids, ONE))
    assert put(rows, ids, sharding).tokens.sharding == sharding


def test_devices_read_only_the_rows_that_they_hold():
    read = []

    class Told(TextRows):
        def read(self, ids):
            read.append(ids.tolist())
            return super().read(ids)

    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    put(Told(SPLIT, 7, "joined"), np.arange(8), batch_sharding(mesh, 8))
    assert sorted(read) == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("step", [0, 1, 5, 1000])
def test_a_run_goes_on_where_it_was(step):
    rows = TextRows(SPLIT, 7, "separate")
    order = rows.order(4, seed=3)
    resumed = training_batches(rows, order, ONE, step=step)
    for due in range(step, step + 5):
        assert_same(next(resumed), put(rows, order.at(due), ONE))
    resumed.close()


def test_evaluation_does_not_move_the_training_order():
    rows = TextRows(SPLIT, 7, "separate")
    one, two = (training_batches(rows, rows.order(4, seed=3), ONE) for _ in range(2))
    for _ in range(4):
        list(evaluation_batches(rows, 4, ONE))
        assert_same(next(one), next(two))
    one.close()
    two.close()


def test_the_next_batch_is_made_while_one_is_in_use():
    made = threading.Event()

    class Told(TextRows):
        def read(self, ids):
            if read == [1]:
                made.set()
            read.append(1)
            return super().read(ids)

    read: list[int] = []
    batches = training_batches(Told(SPLIT, 7, "joined"), Order(14, 4, 0), ONE)
    next(batches)
    assert made.wait(30)
    batches.close()
    before = threading.active_count()
    for _ in range(3):
        for _ in itertools.islice(
            training_batches(Told(SPLIT, 7, "joined"), Order(14, 4, 0), ONE), 2
        ):
            pass
    assert threading.active_count() <= before + 1


def test_an_error_of_the_thread_reaches_who_reads(tmp_path):
    split = split_of_tokens([1, 2, 300, 4, 5, 6], starts=[0])
    split = type(split)("train", split.shards, split.starts, None, vocab_size=10)
    rows = TextRows(split, 2, "joined")
    with pytest.raises(ValueError, match="the train split has the token 300"):
        list(evaluation_batches(rows, 4, ONE))


def test_a_batch_lives_on_when_the_next_are_made():
    rows = TextRows(SPLIT, 7, "joined")
    batches = training_batches(rows, rows.order(4, seed=0), ONE)
    kept = list(itertools.islice(batches, 6))
    batches.close()
    for step, batch in enumerate(kept):
        assert_same(batch, put(rows, rows.order(4, seed=0).at(step), ONE))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ((0, "joined"), "time=0 must be a positive integer"),
        ((8, "packed"), "documents='packed' must be 'separate' or 'joined'"),
    ],
)
def test_rows_of_nothing_are_refused(settings, error):
    with pytest.raises(ValueError, match=error):
        TextRows(SPLIT, *settings)


def test_what_is_too_short_or_says_no_starts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has 1 tokens, so there is none to predict"):
        TextRows(split_of_tokens([1]), 8, "joined")
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "train.bin")
    split = open_tokens(tmp_path).train
    with pytest.raises(ValueError, match=r"do not say where a document starts; .*'joined'"):
        TextRows(split, 8, "separate")
    assert TextRows(split, 8, "joined").whole == 12


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with pytest.raises(ValueError, match=r"batch=6 is not a multiple of data x fsdp = 4"):
        batch_sharding(mesh, 6)


@pytest.mark.parametrize("mesh", ["4,1,2", "1,8,1", "1,1,8"])
def test_two_processes_make_the_batch_of_one(tmp_path, mesh):
    """Each process says the rows on its devices; together they are the global batch, once each."""
    folder = token_folder(tmp_path)
    program = __file__.replace("test_training_batches", "batches_program")
    with Job(2, program, "127.0.0.1:{port}", "{process}", folder, mesh) as job:
        ended = job.ended()
    rows = TextRows(open_tokens(folder).train, 16, "separate")
    batch = Batch(*arrays(put(rows, rows.order(8, seed=5).at(7), ONE)))
    said = set()
    for done in ended.values():
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            begin, *values = map(int, line.split())
            row = [batch.tokens, batch.targets, batch.positions, batch.weights]
            assert values == [int(x) for field in row for x in field[begin]]
            said.add(begin)
    assert said == set(range(8))
